"""Tokens of several texts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding

Ids = NDArray[np.int32]
Indices = NDArray[np.int64]

_TOKENS_PER_GROUP = 8192
"""So that the arrays of a group stay in a processor's cache, and their memory is used again."""


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of several texts, one after the other.

    vocabulary  what the ids mean
    ids         [n] int32
    first       [d + 1] int64, the token with which each text begins, and n
    """

    vocabulary: Vocabulary
    ids: Ids
    first: Indices

    def __len__(self) -> int:
        return len(self.first) - 1

    def of_text(self, text: int) -> tuple[Ids, Indices]:
        """The tokens of a text, and the bytes of each."""
        begin, end = self.first[text : text + 2].tolist()
        ids = self.ids[begin:end]
        return ids, self.vocabulary.lengths_of(ids)

    def texts_of(self, tokens: Indices) -> Indices:
        """The text of each of some tokens, by their numbers."""
        return np.searchsorted(self.first, tokens, side="right") - 1

    def select(self, texts: Sequence[int]) -> TokenBatch:
        """The same, of some of the texts, which are in order."""
        if len(texts) == len(self):
            return self
        bounds = self.first.tolist()
        return token_batch(self.vocabulary, [self.ids[bounds[text] : bounds[text + 1]] for text in texts])

    def groups(self) -> Iterator[tuple[int, TokenBatch]]:
        """Neighbouring texts whose tokens fit a processor's cache together, with the number of the first of them."""
        begin = 0
        while begin < len(self):
            room = int(self.first[begin]) + _TOKENS_PER_GROUP
            end = max(begin + 1, int(np.searchsorted(self.first, room, side="right")) - 1)
            first = self.first[begin : end + 1]
            yield begin, TokenBatch(self.vocabulary, self.ids[first[0] : first[-1]], first - first[0])
            begin = end

    def side_by_side(self) -> list[Encoding]:
        """Encodings of texts that the bytes of the tokens make up."""
        lengths = self.vocabulary.lengths_of(self.ids)
        bounds = sums(lengths)
        ends = bounds[1:] - np.repeat(bounds.take(self.first[:-1]), np.diff(self.first))
        return self._encodings(ends - lengths, ends)

    def encodings(self, ends: Indices) -> list[Encoding]:
        """The texts' tokens, none of them special. ends: [n] where each token ends in its text."""
        starts = np.empty_like(ends)
        starts[1:] = ends[:-1]
        starts[self.first[:-1][np.diff(self.first) > 0]] = 0
        return self._encodings(starts, ends)

    def _encodings(self, starts: Indices, ends: Indices) -> list[Encoding]:
        bounds = pairwise(self.first.tolist())
        return [Encoding(self.ids[begin:end], starts[begin:end], ends[begin:end]) for begin, end in bounds]


def token_batch(vocabulary: Vocabulary, batch: Sequence[Sequence[int] | Ids]) -> TokenBatch:
    """The ids of each text as one batch."""
    first = sums(np.fromiter(map(len, batch), np.int64, len(batch)))
    if len(batch) and isinstance(batch[0], np.ndarray):
        ids = np.concatenate(cast("Sequence[Ids]", batch), dtype=np.int32)
    else:
        ids = np.fromiter(chain.from_iterable(batch), np.int32, int(first[-1]))
    return TokenBatch(vocabulary, ids, first)


def sums(numbers: Indices | Sequence[int]) -> Indices:
    """[n + 1] sums of the first 0 .. n numbers."""
    sums = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=sums[1:])
    return sums
