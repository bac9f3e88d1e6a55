"""Spans of tokens whose bytes make up the texts, as the tokenizer saw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.token_batch import Ids, Indices, TokenBatch, sums
from nemo_xtoken.types import Encoding

Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]

_FIRST_BYTES: Words = np.frombuffer(b"".join(b"\xff" * count + bytes(8 - count) for count in range(9)), np.uint64)
"""[9] eight bytes of which the first 0 .. 8 count."""


@dataclass(frozen=True)
class UnknownExtents:
    """What the unknown tokens of several texts stand for.

    token_id      of the unknown token
    begins, ends  [u] int64, places in the texts, end exclusive, in order
    """

    token_id: int
    begins: Indices
    ends: Indices

    def tokens(self, ids: Ids) -> Indices:
        """Which tokens are unknown."""
        return (ids == self.token_id).nonzero()[0]


@dataclass(frozen=True)
class PlacedTokens:
    """Tokens laid over texts one after the other, each over as many bytes as it has.

    lengths  [n] int64, bytes of each
    bounds   [n + 1] int64, bytes of the first 0 .. n
    starts   [n] int64, place of each one's first byte
    ends     [n] int64, place after each one's last byte
    divided  the tokens between whose bytes something is passed over, once for each byte of that
    """

    lengths: Indices
    bounds: Indices
    starts: Indices
    ends: Indices
    divided: Indices


@dataclass(frozen=True)
class SeenTexts:
    """Several texts as a tokenizer may see them, one after the other.

    content  the bytes, with what is put in front of each text
    begins   [d + 1] int64, where each text begins in content with what is in front of it, and the end
    origins  [d] int64, where the text itself begins, less what was taken off its front
    sizes    [d] int64, bytes of each text
    dropped  [k] int64, places in content that the tokenizer passes over, in order
    unknown  None: no token is unknown
    """

    content: bytes
    begins: Indices
    origins: Indices
    sizes: Indices
    dropped: Indices
    unknown: UnknownExtents | None = None

    def place(self, tokens: TokenBatch) -> PlacedTokens:
        """Lay tokens over the texts; the places mean something where sizes_differ finds nothing."""
        lengths = self._lengths(tokens)
        bounds = sums(lengths)
        if not len(self.dropped):
            return PlacedTokens(lengths, bounds, bounds[:-1], bounds[1:], self.dropped)
        passed = self.dropped - np.arange(len(self.dropped))  # bytes that are seen before each
        after = np.searchsorted(bounds[:-1], passed)
        starts = bounds[:-1] + np.bincount(after, minlength=len(bounds)).cumsum()[:-1]
        ends = starts + lengths
        divided = after[bounds.take(after) > passed] - 1
        np.add.at(ends, divided, 1)
        return PlacedTokens(lengths, bounds, starts, ends, divided)

    def sizes_differ(self, tokens: TokenBatch, placed: PlacedTokens) -> Mask:
        """[d] whether a text's tokens have more or fewer bytes than it, or one has none."""
        seen = np.diff(self.begins) - np.diff(np.searchsorted(self.dropped, self.begins))
        differ: Mask = np.diff(placed.bounds.take(tokens.first)) != seen
        if not placed.lengths.min(initial=1):
            differ[tokens.texts_of((placed.lengths == 0).nonzero()[0])] = True
        return differ

    def bytes_differ(self, tokens: TokenBatch, placed: PlacedTokens) -> Mask:
        """[d] whether a text's tokens, which have as many bytes, have others."""
        differ = np.zeros(len(tokens), np.bool_)
        lengths = placed.lengths
        if self.unknown is not None or len(placed.divided):
            lengths = tokens.vocabulary.lengths_of(tokens.ids)  # none of unknown tokens
            lengths[placed.divided] = 0
            wrong = [token for token in set(placed.divided.tolist()) if not self._is_divided(tokens, placed, token)]
            differ[tokens.texts_of(np.array(wrong, np.int64))] = True
        if self.unknown is not None:
            unknown = self.unknown.tokens(tokens.ids)
            differ[tokens.texts_of(unknown[placed.starts.take(unknown) != self.unknown.begins])] = True
        differ[tokens.texts_of(self._different(tokens, placed.starts, lengths))] = True
        return differ

    def encodings(self, tokens: TokenBatch, ends: Indices) -> list[Encoding]:
        """Spans of tokens that end at places of content. What is passed over belongs to the token after it, at the end
        of a text to the last."""
        counts = np.diff(tokens.first)
        ends = ends - np.repeat(self.origins, counts)
        filled = counts > 0
        ends[tokens.first[1:][filled] - 1] = self.sizes[filled]
        return tokens.encodings(ends)

    def _lengths(self, tokens: TokenBatch) -> Indices:
        """[n] bytes of each token; 0 of unknown ones in a text that has another number of them."""
        lengths = tokens.vocabulary.lengths_of(tokens.ids)
        if self.unknown is not None:
            unknown = self.unknown.tokens(tokens.ids)
            counts = np.diff(np.searchsorted(unknown, tokens.first))
            found = np.diff(np.searchsorted(self.unknown.begins, self.begins))
            sizes = self.unknown.ends - self.unknown.begins
            lengths[unknown[np.repeat(counts == found, counts)]] = sizes[np.repeat(counts == found, found)]
        return lengths

    def _is_divided(self, tokens: TokenBatch, placed: PlacedTokens, token: int) -> bool:
        """Whether a token is what lies between its places without what is passed over."""
        start, end = int(placed.starts[token]), int(placed.ends[token])
        first, last = np.searchsorted(self.dropped, (start, end)).tolist()
        part = np.frombuffer(self.content, np.uint8, end - start, start)
        seen = np.delete(part, self.dropped[first:last] - start)
        return seen.tobytes() == tokens.vocabulary.pieces[int(tokens.ids[token])]

    def _different(self, tokens: TokenBatch, starts: Indices, lengths: Indices) -> Indices:
        """Tokens of which some of the first so many bytes are not those from their place on. They are compared eight
        at a time; those that differ later than others need not be found."""
        numbers, ids = np.arange(len(tokens.ids)), tokens.ids
        windows: Words = np.ndarray(len(self.content) + 1, np.uint64, self.content + bytes(8), strides=(1,)).copy()
        for place in range(0, int(lengths.max(initial=0)), 8):
            differs = windows.take(starts)
            differs ^= tokens.vocabulary.words(place).take(ids)
            differs &= _FIRST_BYTES.take(lengths, mode="clip")
            if differs.max():
                return numbers[differs > 0]
            longer = (lengths > 8).nonzero()[0]
            numbers, ids = numbers.take(longer), ids.take(longer)
            starts, lengths = starts.take(longer) + 8, lengths.take(longer) - 8
        return numbers[:0]


View = Callable[[Sequence[bytes], Ids], SeenTexts]
"""How a tokenizer may see texts; it is told the ids of all their tokens."""


def encodings_by_bytes(tokens: TokenBatch, texts: Sequence[bytes], views: Sequence[View]) -> list[Encoding | None]:
    """The tokens of each text by the first view of it that their bytes make up, or None where none is."""
    found: list[Encoding | None] = []
    for begin, group in tokens.groups():
        found += _group_by_bytes(group, texts[begin : begin + len(group)], views)
    return found


def _group_by_bytes(tokens: TokenBatch, texts: Sequence[bytes], views: Sequence[View]) -> list[Encoding | None]:
    found: list[Encoding | None] = [None] * len(texts)
    rest = list(range(len(texts)))
    for view in views:
        by_view = _by_view(tokens.select(rest), [texts[text] for text in rest], view) if rest else []
        for text, encoding in zip(rest, by_view, strict=True):
            found[text] = encoding
        rest = [text for text in rest if found[text] is None]
    return found


def _by_view(tokens: TokenBatch, texts: Sequence[bytes], view: View) -> list[Encoding | None]:
    seen = view(texts, tokens.ids)
    placed = seen.place(tokens)
    differ = seen.sizes_differ(tokens, placed)
    if not differ.any():
        differ = seen.bytes_differ(tokens, placed)
        if not differ.any():
            return list(seen.encodings(tokens, placed.ends))
    chosen = (~differ).nonzero()[0].tolist()
    some = iter(_by_view(tokens.select(chosen), [texts[text] for text in chosen], view) if chosen else ())
    return [None if other else next(some) for other in differ.tolist()]
