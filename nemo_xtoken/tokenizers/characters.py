"""What a tokenizer's normaliser makes of single characters."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.huggingface_pieces import SPACE
from nemo_xtoken.tokenizers.normalize import Normalized, from_edits, unchanged
from nemo_xtoken.tokenizers.spans import code_points

_UNKNOWN, _SAME, _REPLACED = range(3)


class CharacterMap:
    """Replaces the characters beyond ASCII that a normaliser replaces, each by itself.

    The result is a guess, since a normaliser may look at several characters at once: it has to be held against the
    bytes of the tokens. Each character is asked for once.
    """

    def __init__(self, normalize: Callable[[str], str]) -> None:
        self._normalize = normalize
        self._kinds: NDArray[np.uint8] = np.zeros(sys.maxunicode + 1, np.uint8)
        self._kinds[:0x80] = self._kinds[ord(SPACE)] = _SAME
        self._replacements: dict[int, str] = {}

    def normalized(self, text: str) -> Normalized:
        """The text with its characters replaced. Raises TokenizerError for a lone surrogate."""
        original = unchanged(text)
        if text.isascii():
            return original
        codes = code_points(text)
        kinds = self._kinds.take(codes)
        if not kinds.all():
            for code in set(codes[kinds == _UNKNOWN].tolist()):
                self._ask(code)
            kinds = self._kinds.take(codes)
        replaced = (kinds == _REPLACED).nonzero()[0].tolist()
        return self._replace(text, replaced, original.size) if replaced else original

    def _ask(self, code: int) -> None:
        """Find out what becomes of a character between two others."""
        between = self._normalize(f"a{chr(code)}a").replace(SPACE, " ").strip()
        replacement = between[1:-1].strip() if between[:1] == between[-1:] == "a" else ""
        if not replacement and between == "a a":
            replacement = "\n"  # not a space, so that it is seen that it has become one
        # A character that is dropped, or becomes a space and more, is left to the offsets of the library.
        is_other = replacement not in ("", chr(code)) and " " not in replacement
        self._kinds[code] = _REPLACED if is_other else _SAME
        self._replacements[code] = replacement

    def _replace(self, text: str, places: list[int], size: int) -> Normalized:
        parts: list[str] = []
        edits: list[tuple[int, int, int]] = []
        position = result = 0
        for place in places:
            kept, replacement = text[position:place], self._replacements[ord(text[place])]
            begin = result + len(kept.encode())
            result = begin + len(replacement.encode())
            edits.append((begin, result, len(text[place].encode()) - (result - begin)))
            parts += (kept, replacement)
            position = place + 1
        return from_edits("".join([*parts, text[position:]]), size, edits)
