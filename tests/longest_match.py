"""A tokenizer whose every encoding can be checked by eye, and the rows of W as dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.types import Encoding

BYTES = [bytes([value]) for value in range(256)]
DIGITS = [str(digit).encode() for digit in range(10)]


class LongestMatch:
    """Encodes by the longest known token from the left, or drops the byte; with `space`, after a space put before."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_roles: Mapping[int, str] | None = None,
        spec: str = "fake",
        space: bool = False,
        special_names: Mapping[int, str] | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self.special_roles = special_roles or {}
        self.special_names = self.special_roles if special_names is None else special_names
        self.spec = spec
        self.space = space
        self.vocab_size = len(self.tokens)
        self.fingerprint = hashlib.sha256(repr((self.tokens, sorted(self.special_roles.items()))).encode()).hexdigest()
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens) if token}
        self.num_batches = 0

    def encode(self, text: str) -> Encoding:
        data = b" " * self.space + text.encode()
        ids: list[int] = []
        ends: list[int] = []
        start = 0
        while start < len(data):
            end = next((end for end in range(len(data), start, -1) if data[start:end] in self.ids), None)
            if end is not None:
                ids.append(self.ids[data[start:end]])
                ends.append(end - self.space)
            start = end or start + 1
        starts = [0, *ends[:-1]] if ends else []
        return Encoding(np.array(ids, np.int32), np.array(starts, np.int64), np.array(ends, np.int64))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        self.num_batches += 1
        return [self.encode(text) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[token_id] for token_id in ids).decode(errors="replace")


def entries(matrix: ProjectionMatrix, row: int) -> dict[int, float]:
    return {
        int(index): float(weight)
        for index, weight in zip(matrix.indices[row], matrix.weights[row], strict=True)
        if index >= 0
    }
