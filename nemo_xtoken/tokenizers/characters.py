"""What a tokenizer's normaliser makes of single characters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.huggingface_pieces import SPACE
from nemo_xtoken.tokenizers.normalize import Normalized, NormalizedTexts, from_edits, nfc_texts, unchanged_texts
from nemo_xtoken.tokenizers.spans import characters_at

_UNKNOWN, _SAME, _REPLACED = range(3)

_FIRST_BYTES = bytes(byte >= 0xC0 for byte in range(256))
"""[256] whether a byte is the first of a character beyond ASCII."""


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
        self._replacements: dict[int, tuple[int, bytes]] = {}

    def normalized_texts(self, texts: Sequence[str]) -> NormalizedTexts:
        """The texts with their characters replaced. Raises TokenizerError for a lone surrogate."""
        composed = nfc_texts(texts) if self._composes else unchanged_texts(texts)
        contents = composed.contents
        others = [number for number, content in enumerate(contents) if not content.isascii()]
        joined = b"".join(map(contents.__getitem__, others))
        places = np.frombuffer(joined.translate(_FIRST_BYTES), np.bool_).nonzero()[0]
        codes, _ = characters_at(np.frombuffer(joined, np.uint8), places)
        replaced = self._kinds_of(codes) == _REPLACED
        changed: dict[int, Normalized] = {}
        if replaced.any():
            places, codes = places[replaced], codes[replaced].tolist()
            begins = np.fromiter(accumulate((len(contents[number]) for number in others), initial=0), np.int64)
            first = np.searchsorted(places, begins)
            for place in (first[1:] > first[:-1]).nonzero()[0].tolist():
                own = slice(*first[place : place + 2].tolist())
                number = others[place]
                content = contents[number]
                changed[number] = self._replace(content, (places[own] - begins[place]).tolist(), codes[own])
                contents[number] = changed[number].text.encode()
        return NormalizedTexts(contents, changed, composed.changed)

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
        self._replacements[code] = len(chr(code).encode()), replacement.encode()

    def _replace(self, content: bytes, places: list[int], codes: list[int]) -> Normalized:
        """A text of which the characters at places are replaced."""
        parts: list[bytes] = []
        edits: list[tuple[int, int, int]] = []
        position = shift = 0
        for place, code in zip(places, codes, strict=True):
            width, replacement = self._replacements[code]
            size = len(replacement)
            parts += (content[position:place], replacement)
            edits.append((place + shift, place + shift + size, width - size))
            position = place + width
            shift += size - width
        return from_edits(b"".join([*parts, content[position:]]).decode(), len(content), edits)
