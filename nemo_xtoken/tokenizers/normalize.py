"""Texts that a tokenizer changes before it splits them, with the way back to the bytes of the original."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.spans import char_widths, code_points, encode_utf8, settle
from nemo_xtoken.tokenizers.token_batch import sums
from nemo_xtoken.types import Encoding

_JOINING, _REPLACED = 1, 2


@dataclass(frozen=True)
class Edits:
    """Runs that a tokenizer replaced, in order: [e] int64 each.

    begins, ends  bytes of the normalised text that stand in place of the run
    lost          bytes by which the run was longer in the original; below 0 where it was shorter
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    lost: NDArray[np.int64]

    def shifted(self, by: NDArray[np.int64]) -> Edits:
        """The same with each so many bytes further on. by: [e]"""
        return Edits(self.begins + by, self.ends + by, self.lost)

    def in_original(self, bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[n] places of the normalised text, in order, as places of the original, and whether each is certain: inside
        of what can't be divided there it says nothing."""
        after = np.searchsorted(bounds, self.ends)
        lost = np.append(0, self.lost.cumsum())
        shift = np.repeat(lost, np.append(after, len(bounds)) - np.append(0, after))
        certain = np.ones(len(bounds), np.bool_)
        inside = np.searchsorted(bounds, self.begins, side="right")
        if (inside < after).any():
            for first, last in zip(inside.tolist(), after.tolist(), strict=True):
                certain[first:last] = False
        return bounds + shift, certain


@dataclass(frozen=True)
class Normalized:
    """A text as the tokenizer sees it, which is another one than the original.

    text   the normalised text
    size   bytes of the original
    edits  where the two differ
    """

    text: str
    size: int
    edits: Edits


@dataclass(frozen=True)
class Changes:
    """What a tokenizer changed in several texts.

    numbers  of the texts, in order
    sizes    [t] int64, bytes of each before
    first    [t + 1] int64, where the edits of each begin, and how many there are
    edits    of all, in order, with places in the text of each
    """

    numbers: Sequence[int]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]
    edits: Edits

    @classmethod
    def of(cls, changed: Mapping[int, Normalized]) -> Changes:
        """Those of texts by their numbers, in order."""
        edits = [each.edits for each in changed.values()]
        return cls(
            [*changed],
            np.array([each.size for each in changed.values()]),
            sums([len(each.lost) for each in edits]),
            Edits(*(np.concatenate([getattr(each, name) for each in edits]) for name in ("begins", "ends", "lost"))),
        )

    def select(self, chosen: NDArray[np.bool_]) -> Changes:
        """Those in some of the texts. chosen: [t]"""
        counts = np.diff(self.first)
        kept = np.repeat(chosen, counts)
        edits = Edits(self.edits.begins[kept], self.edits.ends[kept], self.edits.lost[kept])
        return Changes([*compress(self.numbers, chosen)], self.sizes[chosen], sums(counts[chosen]), edits)

    def in_original(self, tokens: Sequence[Encoding]) -> list[Encoding]:
        """Tokens that tile each of the texts, which has some, as tokens of the texts before."""
        counts = np.array([len(each) for each in tokens])
        bounds, originals = sums([int(each.ends[-1]) for each in tokens]), sums(self.sizes)
        whole = self.edits.shifted(np.repeat(bounds[:-1], np.diff(self.first)))
        ends = np.concatenate([each.ends for each in tokens]) + np.repeat(bounds[:-1], counts)
        places, certain = whole.in_original(ends)
        last = counts.cumsum() - 1
        places[last], certain[last] = originals[1:], True
        ids = np.concatenate([each.ids for each in tokens])
        found = settle(ids, places, certain, int(originals[-1]))
        exact = found.exact
        if any(each.exact is not None for each in tokens):
            before = np.concatenate([np.ones(len(each), bool) if each.exact is None else each.exact for each in tokens])
            exact = before if exact is None else exact & before
        begins = np.repeat(originals[:-1], counts)
        starts, ends = found.starts - begins, found.ends - begins
        return [
            Encoding(ids[i:j], starts[i:j], ends[i:j], exact=None if exact is None or exact[i:j].all() else exact[i:j])
            for i, j in pairwise([0, *(last + 1).tolist()])
        ]


@dataclass(frozen=True)
class NormalizedTexts:
    """Several texts as the tokenizer sees them.

    contents  UTF-8 of each normalised text
    changes   what was changed in some of them, the last of it first
    """

    contents: Sequence[bytes]
    changes: Sequence[Changes] = ()

    def in_original(self, found: Sequence[Encoding | None]) -> list[Encoding | None]:
        """Tokens with spans in the normalised texts, which they tile, as tokens with spans in the originals."""
        encodings = dict(enumerate(found))
        for changes in self.changes:
            tokens = {
                number: each for number in changes.numbers if (each := encodings[number]) is not None and len(each)
            }
            if tokens:
                chosen = changes.select(np.array([number in tokens for number in changes.numbers]))
                encodings |= zip(tokens, chosen.in_original([*tokens.values()]), strict=True)
        return [*encodings.values()]


def unchanged_texts(texts: Sequence[str]) -> NormalizedTexts:
    """Texts that need no normalisation. Raises TokenizerError for a lone surrogate."""
    return NormalizedTexts([encode_utf8(text) for text in texts])


def nfc_texts(texts: Sequence[str]) -> NormalizedTexts:
    """Texts in Unicode's composed form. Raises TokenizerError for a lone surrogate."""
    return composed_texts(texts, [encode_utf8(text) for text in texts], range(len(texts)))


def composed_texts(texts: Sequence[str], contents: Sequence[bytes], numbers: Iterable[int]) -> NormalizedTexts:
    """Texts in Unicode's composed form, which only those of some numbers may lack. contents: UTF-8 of each"""
    changed = {
        number: each for number in numbers if (each := composed(texts[number], len(contents[number]))) is not None
    }
    if not changed:
        return NormalizedTexts(contents)
    seen = [changed[number].text.encode() if number in changed else each for number, each in enumerate(contents)]
    return NormalizedTexts(seen, (Changes.of(changed),))


def may_compose(codes: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n] whether composition changes a character in some text; a text without any stays as it is."""
    return _kinds().take(codes) > 0


def composed(text: str, size: int) -> Normalized | None:
    """A text in Unicode's composed form; None where it is so already. size: its bytes in UTF-8.

    Each run of combining characters is composed by itself; what lies between the runs stays as it is.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return None
    parts: list[str] = []
    edits: list[tuple[int, int, int]] = []  # where a changed run begins and ends in the result, bytes it lost
    position = 0
    result = 0
    for first, last in _composing_runs(text):
        kept, run = text[position:first], text[first:last]
        replacement = unicodedata.normalize("NFC", run)
        begin = result + len(kept.encode())
        result = begin + len(replacement.encode())
        if replacement != run:
            edits.append((begin, result, len(run.encode()) - (result - begin)))
        parts += (kept, replacement)
        position = last
    parts.append(text[position:])
    begins, ends, lost = np.array(edits, np.int64).reshape(-1, 3).T
    return Normalized("".join(parts), size, Edits(begins, ends, lost))


def _composing_runs(text: str) -> Iterable[tuple[int, int]]:
    """First and last (exclusive) of each character with those that may combine with it, or that is itself replaced."""
    kinds = _kinds()[code_points(text)]
    joining = kinds == _JOINING
    begins = ~joining
    begins[:1] = True
    in_run = kinds > 0
    in_run[:-1] |= joining[1:]
    places = np.append(np.flatnonzero(begins), len(text))
    of_run = np.flatnonzero(in_run[places[:-1]])
    return zip(places[of_run].tolist(), places[of_run + 1].tolist(), strict=True)


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """[code points] _JOINING: may combine with the character before. _REPLACED: composition changes it by itself."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    starters = _second_starters()
    for char in map(chr, range(0xA0, sys.maxunicode + 1)):
        decomposes = unicodedata.decomposition(char)
        first = unicodedata.normalize("NFD", char)[0] if decomposes else char
        if unicodedata.combining(first) or first in starters:
            kinds[ord(char)] = _JOINING
        elif decomposes and not unicodedata.is_normalized("NFC", char):
            kinds[ord(char)] = _REPLACED
    return kinds


def joins(char: str) -> bool:
    """Whether a character may become one with that before it."""
    return bool(_kinds()[ord(char)] == _JOINING)


def _second_starters() -> set[str]:
    """Characters of combining class 0 that compose with the one before: some vowel signs, Hangul vowels and finals."""
    hangul = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    decompositions = (unicodedata.decomposition(chr(code)).split() for code in range(0xA0, sys.maxunicode + 1))
    seconds = {chr(int(parts[1], 16)) for parts in decompositions if len(parts) == 2 and not parts[0].startswith("<")}
    return hangul | {char for char in seconds if not unicodedata.combining(char)}


@dataclass(frozen=True)
class Places:
    """Where the bytes of a normalised text come from.

    size     bytes of the original
    origin   [bytes of the text + 1] int64, the byte of the original where each byte of the text begins
    certain  [bytes of the text + 1] bool, False inside of what can't be divided, where origin says nothing
    """

    size: int
    origin: NDArray[np.int64]
    certain: NDArray[np.bool_]

    def tokens(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> Encoding:
        """Tokens whose bytes follow each other in the text, with spans in the original. lengths: [n] bytes of each."""
        ends = lengths.cumsum()
        return settle(ids, self.origin[ends], self.certain[ends], self.size)


def from_offsets(original: str, text: str, offsets: Sequence[int], num_inserted: int) -> Places:
    """Where a normalised text comes from, by the library's own offsets.

    offsets       [characters of text + 1], the character of the original that each character of the text comes from
    num_inserted  characters at the front of the text that stand for nothing in the original
    """
    original_codes, codes = code_points(original), code_points(text)
    original_begin = np.concatenate(([0], np.cumsum(char_widths(original_codes))))
    widths = char_widths(codes)
    source = np.array(offsets, np.int64)
    copied = (source[1:] > source[:-1]) & (np.append(original_codes, 0)[source[:-1]] == codes)
    # A character ends where its own copy ends; only where it isn't a copy does the next one's begin decide. A space is
    # none: it stands for the whole of a run of white space.
    copied &= codes != ord(" ")
    boundary = original_begin[source]
    boundary[1:] = np.where(copied, boundary[:-1] + widths, boundary[1:])
    divisible = np.ones(len(source), np.bool_)
    divisible[1:] = source[1:] > source[:-1]
    divisible[: num_inserted + 1] = True
    return _per_byte(int(original_begin[-1]), widths, copied, boundary, divisible)


def _per_byte(
    size: int,
    widths: NDArray[np.int64],
    copied: NDArray[np.bool_],
    boundary: NDArray[np.int64],
    divisible: NDArray[np.bool_],
) -> Places:
    """Boundaries between characters, and within those copied from the original, as boundaries between bytes."""
    begin = np.concatenate(([0], np.cumsum(widths)))
    char = np.repeat(np.arange(len(widths)), widths)
    within = np.arange(len(char)) - begin[char]
    copy_begin = boundary[1:] - widths
    origin = np.where(within > 0, copy_begin[char] + within, boundary[char])
    certain = np.where(within > 0, copied[char], divisible[char])
    return Places(size, np.append(origin, size), np.append(certain, True))
