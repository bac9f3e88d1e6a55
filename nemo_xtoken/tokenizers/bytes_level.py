"""Bytes as tokens, with the ids of ByT5: pad, eos and unk first, then the 256 bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_xtoken.tokenizers.base import VocabularyTokenizer
from nemo_xtoken.tokenizers.spans import encode_utf8
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding

_ROLES = {0: "pad", 1: "eos", 2: "unk"}
_NAMES = {0: "<pad>", 1: "</s>", 2: "<unk>"}
_FIRST_BYTE = len(_ROLES)


class ByteTokenizer(VocabularyTokenizer):
    """One token for each byte of the text."""

    def __init__(self) -> None:
        pieces = [b""] * _FIRST_BYTE + [bytes([value]) for value in range(256)]
        super().__init__("bytes", Vocabulary(pieces, _ROLES, "bytes"))

    def encode(self, text: str) -> Encoding:
        """The bytes of the text, each with its own span; see `Tokenizer.encode`."""
        values = np.frombuffer(encode_utf8(text), np.uint8)
        bounds = np.arange(len(values) + 1, dtype=np.int64)
        return Encoding(values.astype(np.int32) + np.int32(_FIRST_BYTE), bounds[:-1], bounds[1:])

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, one text after the other."""
        return [self.encode(text) for text in texts]

    def _special_name(self, token_id: int) -> str:
        return _NAMES[token_id]
