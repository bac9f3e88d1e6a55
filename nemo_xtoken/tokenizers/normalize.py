"""Texts that a tokenizer changes before it splits them, with the way back to the bytes of the original."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.spans import char_widths, code_points, encode_utf8, settle
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


@dataclass(frozen=True)
class Normalized:
    """A text as the tokenizer sees it.

    text   the normalised text
    size   bytes of the original
    edits  where the two differ. None: nowhere
    """

    text: str
    size: int
    edits: Edits | None = None

    @cached_property
    def origin(self) -> NDArray[np.int64] | None:
        """[bytes of text + 1] the byte of the original where each byte of the text begins. None: the same"""
        return None if self.edits is None else self._in_original(self._bounds())[0]

    @cached_property
    def certain(self) -> NDArray[np.bool_] | None:
        """[bytes of text + 1] False inside of what can't be divided in the original, where origin says nothing"""
        return None if self.edits is None else self._in_original(self._bounds())[1]

    def _bounds(self) -> NDArray[np.int64]:
        return np.arange(len(self.text.encode()) + 1)

    def _in_original(self, bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[n] places of `text`, in order, as places of the original, and whether each is certain."""
        certain = np.ones(len(bounds), np.bool_)
        if self.edits is None:
            return bounds, certain
        shift = np.zeros(len(bounds) + 1, np.int64)
        after = np.searchsorted(bounds, self.edits.ends)
        np.add.at(shift, after, self.edits.lost)
        inside = np.searchsorted(bounds, self.edits.begins, side="right")
        for first, last in zip(inside[inside < after].tolist(), after[inside < after].tolist(), strict=True):
            certain[first:last] = False
        return bounds + shift[:-1].cumsum(), certain

    def tokens(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> Encoding:
        """Tokens whose bytes follow each other in `text`, with spans in the original. lengths: [n] bytes of each."""
        ends = lengths.cumsum()
        if self.edits is None:
            return Encoding(ids, ends - lengths, ends)
        return settle(ids, *self._in_original(ends), self.size)

    def in_original(self, tokens: Encoding) -> Encoding:
        """Tokens with spans in `text`, which they tile, as tokens with spans in the original."""
        if self.edits is None:
            return tokens
        found = settle(tokens.ids, *self._in_original(tokens.ends), self.size)
        if tokens.exact is None:
            return found
        return replace(found, exact=tokens.exact if found.exact is None else tokens.exact & found.exact)


def unchanged(text: str) -> Normalized:
    """A text that needs no normalisation. Raises TokenizerError for a lone surrogate."""
    return Normalized(text, len(text) if text.isascii() else len(encode_utf8(text)))


@dataclass(frozen=True)
class NormalizedTexts:
    """Several texts as the tokenizer sees them.

    contents  UTF-8 of each normalised text
    changed   those in which it differs from the original, by their numbers
    composed  those of which `changed` begins with the composed form, by their numbers
    """

    contents: list[bytes]
    changed: Mapping[int, Normalized]
    composed: Mapping[int, Normalized] = field(default_factory=dict[int, Normalized])

    def in_original(self, number: int, tokens: Encoding) -> Encoding:
        """Tokens with spans in a normalised text, which they tile, as tokens with spans in the original."""
        for steps in (self.changed, self.composed):
            if number in steps:
                tokens = steps[number].in_original(tokens)
        return tokens


def unchanged_texts(texts: Sequence[str]) -> NormalizedTexts:
    """Texts that need no normalisation. Raises TokenizerError for a lone surrogate."""
    return NormalizedTexts([encode_utf8(text) for text in texts], {})


def nfc_texts(texts: Sequence[str]) -> NormalizedTexts:
    """Texts in Unicode's composed form. Raises TokenizerError for a lone surrogate."""
    contents = [encode_utf8(text) for text in texts]
    changed: dict[int, Normalized] = {}
    for number, text in enumerate(texts):
        if not _is_nfc(text):
            changed[number] = _compose(text, len(contents[number]))
            contents[number] = changed[number].text.encode()
    return NormalizedTexts(contents, changed)


def nfc(text: str) -> Normalized:
    """A text in Unicode's composed form. Raises TokenizerError for a lone surrogate."""
    original = unchanged(text)
    return original if _is_nfc(text) else _compose(text, original.size)


def _is_nfc(text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized("NFC", text)


def _compose(text: str, size: int) -> Normalized:
    """Compose each run of combining characters by itself; what lies between the runs stays as it is."""
    parts: list[str] = []
    edits: list[tuple[int, int, int]] = []  # where a changed run begins and ends in the result, bytes it lost
    position = 0
    result = 0
    for first, last in _composing_runs(text):
        kept, run = text[position:first], text[first:last]
        composed = unicodedata.normalize("NFC", run)
        begin = result + len(kept.encode())
        result = begin + len(composed.encode())
        if composed != run:
            edits.append((begin, result, len(run.encode()) - (result - begin)))
        parts += (kept, composed)
        position = last
    parts.append(text[position:])
    return from_edits("".join(parts), size, edits)


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


def from_edits(text: str, size: int, edits: list[tuple[int, int, int]]) -> Normalized:
    """A normalised text from where each changed run begins and ends in it, and how many bytes the run lost."""
    begins, ends, lost = np.array(edits, np.int64).reshape(-1, 3).T
    return Normalized(text, size, Edits(begins, ends, lost))


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
