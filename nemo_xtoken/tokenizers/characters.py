"""What a tokenizer's normaliser makes of single characters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, pairwise

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.huggingface_pieces import SPACE
from nemo_xtoken.tokenizers.normalize import Changes, Edits, NormalizedTexts, composed_texts, may_compose
from nemo_xtoken.tokenizers.spans import characters_at, encode_utf8
from nemo_xtoken.tokenizers.token_batch import Indices, sums

_UNKNOWN, _SAME, _REPLACED = range(3)

_FIRST_BYTES = bytes(byte >= 0xC0 for byte in range(256))
"""[256] whether a byte is the first of a character beyond ASCII."""


@dataclass(frozen=True)
class _Characters:
    """Characters beyond ASCII of several texts.

    numbers  of the texts that have any
    content  UTF-8 of these, one after the other
    begins   [t + 1] int64, where each of them begins in content
    places   [n] int64, where each character begins in content
    codes    [n] the characters
    widths   [n] int64, bytes of each
    """

    numbers: list[int]
    content: bytes
    begins: Indices
    places: Indices
    codes: NDArray[np.intp]
    widths: Indices

    def select(self, chosen: NDArray[np.bool_]) -> _Characters:
        """Some of the characters. chosen: [n]"""
        return replace(self, places=self.places[chosen], codes=self.codes[chosen], widths=self.widths[chosen])

    def first(self) -> Indices:
        """[t + 1] the character with which each of the texts begins, and n"""
        return np.searchsorted(self.places, self.begins)


def _beyond_ascii(contents: Sequence[bytes]) -> _Characters:
    numbers = [number for number, content in enumerate(contents) if not content.isascii()]
    chosen = [contents[number] for number in numbers]
    joined = b"".join(chosen)
    places = np.frombuffer(joined.translate(_FIRST_BYTES), np.bool_).nonzero()[0]
    codes, widths = characters_at(np.frombuffer(joined, np.uint8), places)
    return _Characters(numbers, joined, sums([len(content) for content in chosen]), places, codes, widths)


class CharacterMap:
    """Replaces the characters beyond ASCII that a normaliser replaces, each by itself, after it has composed them.

    The result is a guess, since a normaliser may look at several characters at once: it has to be held against the
    bytes of the tokens. Each character is asked for once.
    """

    def __init__(self, normalize: Callable[[str], str], blanks: bytes) -> None:
        """blanks: the characters that become a space later, if they do not here"""
        self._normalize = normalize
        self._blanks = blanks
        self._composes = "\u00e9" in normalize("e\u0301")
        self._kinds: NDArray[np.uint8] = np.zeros(sys.maxunicode + 1, np.uint8)
        self._kinds[:0x80] = self._kinds[ord(SPACE)] = _SAME
        self._replacements: dict[int, bytes] = {}

    def normalized_texts(self, texts: Sequence[str]) -> NormalizedTexts:
        """The texts with their characters replaced. Raises TokenizerError for a lone surrogate."""
        contents = [encode_utf8(text) for text in texts]
        found = _beyond_ascii(contents)
        normalized = NormalizedTexts(contents)
        if self._composes:
            numbers = compress(found.numbers, np.diff(found.select(may_compose(found.codes)).first()))
            normalized = composed_texts(texts, contents, numbers)
            if normalized.changes:
                found = _beyond_ascii(normalized.contents)
        replaced = self._kinds_of(found.codes) == _REPLACED
        return self._replaced(normalized, found.select(replaced)) if replaced.any() else normalized

    def _kinds_of(self, codes: NDArray[np.intp]) -> NDArray[np.uint8]:
        kinds = self._kinds.take(codes)
        if kinds.all():
            return kinds
        for code in set(codes[kinds == _UNKNOWN].tolist()):
            self._ask(code)
        return self._kinds.take(codes)

    def _ask(self, code: int) -> None:
        """Find out what becomes of a character between two others."""
        between = self._normalize(f"a{chr(code)}a").replace(SPACE, " ").strip()
        replacement = between[1:-1].strip() if between[:1] == between[-1:] == "a" else ""
        if not replacement and between == "a a" and b"\n" in self._blanks:
            replacement = "\n"  # not a space, so that it is seen that it has become one
        # A character that is dropped, or becomes a space and more, is left to the offsets of the library.
        is_other = replacement not in ("", chr(code)) and " " not in replacement
        self._kinds[code] = _REPLACED if is_other else _SAME
        self._replacements[code] = replacement.encode()

    def _replaced(self, texts: NormalizedTexts, found: _Characters) -> NormalizedTexts:
        """Texts of which some characters are replaced."""
        replacements = [self._replacements[code] for code in found.codes.tolist()]
        after = found.places + found.widths
        bounds = zip([0, *after.tolist()], [*found.places.tolist(), None], strict=True)
        kept = [found.content[begin:end] for begin, end in bounds]
        content = b"".join([*chain.from_iterable(zip(kept[:-1], replacements, strict=True)), kept[-1]])
        sizes = np.array([len(replacement) for replacement in replacements])
        first, lost = found.first(), sums(found.widths - sizes)
        begins, counts = found.begins - lost[first], np.diff(first)
        ends = after - lost[1:] - np.repeat(begins[:-1], counts)
        contents = list(texts.contents)
        for number, (begin, end) in zip(found.numbers, pairwise(begins.tolist()), strict=True):
            contents[number] = content[begin:end]
        edits = Edits(ends - sizes, ends, np.diff(lost))
        changes = Changes(found.numbers, np.diff(found.begins), first, edits).select(counts > 0)
        return NormalizedTexts(contents, (changes, *texts.changes))
