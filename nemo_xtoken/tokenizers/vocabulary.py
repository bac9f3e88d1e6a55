"""The ids of a tokenizer: the bytes and the role of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class Vocabulary:
    """Bytes of every id and roles of the special ones.

    pieces         [vocab_size] bytes; empty for special and unused ids
    special_roles  id -> role
    rules          what else decides the ids of a text (split pattern, normaliser), for the fingerprint
    lengths        [vocab_size] int64, bytes per id
    """

    def __init__(self, pieces: Sequence[bytes], special_roles: Mapping[int, str], rules: str) -> None:
        self.pieces = pieces
        self.special_roles = special_roles
        self.lengths: NDArray[np.int64] = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self._short_lengths = self.lengths.astype(np.min_scalar_type(int(self.lengths.max(initial=0))))
        self.fingerprint = self._digest(rules)
        self._words: dict[int, NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def lengths_of(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """[n] bytes of each of n ids, out of a table small enough to stay in a processor's cache."""
        return self._short_lengths.take(ids).astype(np.int64)

    def words(self, place: int) -> NDArray[np.uint64]:
        """[vocab_size] eight bytes of every id from a place in it on, zeros after its end."""
        if place not in self._words:
            parts = b"".join(piece[place : place + 8].ljust(8, b"\0") for piece in self.pieces)
            self._words[place] = np.frombuffer(parts, np.uint64)
        return self._words[place]

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of an id; empty for special, unused and padded ids."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of any ids; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def _digest(self, rules: str) -> str:
        digest = hashlib.sha256(rules.encode())
        digest.update(repr(sorted(self.special_roles.items())).encode())
        digest.update(self.lengths.astype("<i8").tobytes())
        digest.update(b"".join(self.pieces))
        return digest.hexdigest()
