"""Bytes as tokens, with the ids of ByT5: pad, eos and unk first, then the 256 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nemo_xtoken.tokenizers.spans import encode_utf8
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding

_ROLES = {0: "pad", 1: "eos", 2: "unk"}
_FIRST_BYTE = len(_ROLES)


class ByteTokenizer:
    """One token for each byte of the text."""

    def __init__(self) -> None:
        pieces = [b""] * _FIRST_BYTE + [bytes([value]) for value in range(256)]
        self._vocabulary = Vocabulary(pieces, _ROLES, "bytes")

    @property
    def spec(self) -> str:
        """The spec it was loaded from."""
        return "bytes"

    @property
    def vocab_size(self) -> int:
        """259: three special ids and the bytes."""
        return len(self._vocabulary)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, bytes and special tokens."""
        return self._vocabulary.fingerprint

    @property
    def special_roles(self) -> Mapping[int, str]:
        """Role of each special id."""
        return self._vocabulary.special_roles

    def encode(self, text: str) -> Encoding:
        """The bytes of the text, each with its own span; see `Tokenizer.encode`."""
        values = np.frombuffer(encode_utf8(text), np.uint8)
        bounds = np.arange(len(values) + 1, dtype=np.int64)
        return Encoding(values.astype(np.int32) + np.int32(_FIRST_BYTE), bounds[:-1], bounds[1:])

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, one text after the other."""
        return [self.encode(text) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        """The byte of an id; empty for special ids."""
        return self._vocabulary.token_bytes(token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; invalid UTF-8 becomes U+FFFD."""
        return self._vocabulary.decode(ids)
