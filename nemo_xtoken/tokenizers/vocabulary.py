"""The ids of a tokenizer: the bytes and the role of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise

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
        self.fingerprint = self._digest(rules)

    def __len__(self) -> int:
        return len(self.pieces)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of an id; empty for special, unused and padded ids."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else b""

    def arrays(self, batch: Sequence[Sequence[int]]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Ids and bytes per id of each text, from arrays that are made for the whole batch at once."""
        ends = np.cumsum([0, *map(len, batch)]).tolist()
        ids = np.fromiter(chain.from_iterable(batch), np.int32, ends[-1])
        lengths = self.lengths[ids]
        return ((ids[start:end], lengths[start:end]) for start, end in pairwise(ends))

    def joined(self, ids: Iterable[int]) -> bytes:
        """Bytes of a text's ids, one after the other."""
        return b"".join(map(self.pieces.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of any ids; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def _digest(self, rules: str) -> str:
        digest = hashlib.sha256(rules.encode())
        digest.update(repr(sorted(self.special_roles.items())).encode())
        digest.update(self.lengths.astype("<i8").tobytes())
        digest.update(b"".join(self.pieces))
        return digest.hexdigest()
