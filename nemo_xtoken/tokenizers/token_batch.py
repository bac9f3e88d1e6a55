"""Tokens of several texts at once, and their spans where their bytes make up the texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding

Ids = NDArray[np.int32]
Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

UNKNOWN = b"\xff"
"""A byte that no UTF-8 has. As the bytes of the unknown token, it is put in place of what that token stands for."""

_SPACE = 0x20

_TOKENS_PER_GROUP = 8192
"""So that the arrays of a group stay in a processor's cache, and their memory is used again."""

_FIRST_BYTES: Words = np.frombuffer(b"".join(b"\xff" * count + bytes(8 - count) for count in range(9)), np.uint64)
"""[9] eight bytes of which the first 0 .. 8 count."""


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

    @cached_property
    def lengths(self) -> Indices:
        """[n] bytes of each token."""
        return self.vocabulary.lengths_of(self.ids)

    @cached_property
    def bounds(self) -> Indices:
        """[n + 1] bytes of the first 0 .. n tokens."""
        return sums(self.lengths)

    @cached_property
    def sizes(self) -> Indices:
        """[d] bytes of each text's tokens."""
        return np.diff(self.bounds.take(self.first))

    @cached_property
    def joined(self) -> bytes:
        """The bytes of all tokens."""
        return b"".join(self.vocabulary.piece_array[self.ids].tolist())

    def are_the_bytes(self, content: bytes) -> bool:
        """Whether the bytes of all tokens are these, eight bytes of a token at a time. content has as many bytes."""
        starts, ids, lengths, place = self.bounds[:-1], self.ids, self.lengths, 0
        windows: Words = np.ndarray(len(content) + 1, np.uint64, content + bytes(8), strides=(1,)).copy()
        while len(ids):
            differs = windows.take(starts)
            differs ^= self.vocabulary.words(place).take(ids)
            differs &= _FIRST_BYTES.take(lengths, mode="clip")
            if differs.any():
                return False
            rest = (lengths > 8).nonzero()[0]
            starts, ids, lengths = starts.take(rest) + 8, ids.take(rest), lengths.take(rest) - 8
            place += 8
        return True

    def of_text(self, text: int) -> tuple[Ids, Indices]:
        """The tokens of a text, and the bytes of each."""
        begin, end = self.first[text : text + 2].tolist()
        ids = self.ids[begin:end]
        return ids, self.vocabulary.lengths_of(ids)

    def with_bytes(self) -> list[int]:
        """The texts that have tokens, all of which have bytes."""
        chosen = np.diff(self.first) > 0
        without = (self.lengths == 0).nonzero()[0]
        chosen[np.searchsorted(self.first, without, side="right") - 1] = False
        return chosen.nonzero()[0].tolist()

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
        ends = self.bounds[1:] - np.repeat(self.bounds.take(self.first[:-1]), np.diff(self.first))
        return self._encodings(ends - self.lengths, ends)

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


def sums(numbers: Indices) -> Indices:
    """[n + 1] sums of the first 0 .. n numbers."""
    sums = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=sums[1:])
    return sums


@dataclass(frozen=True)
class SeenTexts:
    """Several texts as a tokenizer may see them, one after the other.

    seen          the bytes, with UNKNOWN for what an unknown token stands for
    begins        [d + 1] int64, where each text begins in seen, with what was put in front of it
    source        the texts' own bytes, with something in front of each
    starts        [d] int64, where each text itself begins in source
    sizes         [d] int64, bytes of each text
    places        [k] int64, the place in source of each byte of seen. None: the two are the same
    unknown_ends  [u] int64, where what each UNKNOWN stands for ends in source
    """

    seen: bytes
    begins: Indices
    source: bytes
    starts: Indices
    sizes: Indices
    places: Indices | None = None
    unknown_ends: Indices | None = None

    def made_up_by(self, tokens: TokenBatch) -> list[bool]:
        """Which of the texts are what the bytes of their tokens make up."""
        same_size = np.diff(self.begins) == tokens.sizes
        if same_size.all() and tokens.are_the_bytes(self.seen):
            return [True] * len(tokens)
        if not same_size.any():
            return [False] * len(tokens)
        joined = tokens.joined
        bounds = zip(pairwise(sums(tokens.sizes).tolist()), pairwise(self.begins.tolist()), strict=True)
        return [joined[a:b] == self.seen[begin:end] for (a, b), (begin, end) in bounds]

    def encodings(self, tokens: TokenBatch) -> list[Encoding]:
        """Spans of tokens that make up the texts. What is dropped belongs to the token after it, at the end to the
        last."""
        ends = tokens.bounds[1:] if self.places is None else self._in_source(tokens.bounds[1:], self.places)
        counts = np.diff(tokens.first)
        ends = ends - np.repeat(self.starts, counts)
        filled = counts > 0
        ends[tokens.first[1:][filled] - 1] = self.sizes[filled]
        return tokens.encodings(ends)

    def _in_source(self, ends: Indices, places: Indices) -> Indices:
        last = ends - 1
        in_source = places.take(last)
        in_source += 1
        last_bytes = np.frombuffer(self.seen, np.uint8).take(last)
        if self.unknown_ends is not None:
            in_source[last_bytes == UNKNOWN[0]] = self.unknown_ends
        # White space that became a space ends where what follows begins, with what is dropped in between.
        blank = (last_bytes == _SPACE).nonzero()[0]
        became = blank[np.frombuffer(self.source, np.uint8).take(in_source[blank] - 1) != _SPACE]
        following = ends[became]
        in_source[became] = np.where(following < len(places), places.take(following, mode="clip"), len(self.source))
        return in_source


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
    rest = tokens.with_bytes()
    for view in views:
        by_view = _by_view(tokens.select(rest), [texts[text] for text in rest], view) if rest else []
        for text, encoding in zip(rest, by_view, strict=True):
            found[text] = encoding
        rest = [text for text in rest if found[text] is None]
    return found


def _by_view(tokens: TokenBatch, texts: Sequence[bytes], view: View) -> list[Encoding | None]:
    seen = view(texts, tokens.ids)
    made_up = seen.made_up_by(tokens)
    if all(made_up):
        return list(seen.encodings(tokens))
    chosen = [text for text, same in enumerate(made_up) if same]
    some = iter(_by_view(tokens.select(chosen), [texts[text] for text in chosen], view) if chosen else ())
    return [next(some) if same else None for same in made_up]
