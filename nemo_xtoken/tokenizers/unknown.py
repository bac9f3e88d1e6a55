"""What a tokenizer's unknown token stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.huggingface_pieces import SPACE, Extent
from nemo_xtoken.tokenizers.spans import characters_at

Indices = NDArray[np.int64]

_ASKED, _UNKNOWN, _EDGE = 1, 2, 4


class UnknownTokens:
    """Finds what unknown tokens stand for, by the characters that are in no piece of the vocabulary.

    No other token covers such a character. So where as many unknown tokens as are found here and the bytes of the
    other tokens make up the text, in this order, each stands for just what is found here.
    """

    def __init__(self, token_id: int, extent: Extent, pieces: Iterable[bytes], see: Callable[[str], list[str]]) -> None:
        """see: the words that the tokenizer makes of a text before it looks for pieces"""
        self.token_id = token_id
        self._extent = extent
        self._see = see
        self._kinds: NDArray[np.uint8] = np.zeros(sys.maxunicode + 1, np.uint8)
        known = set(b"".join(pieces).decode(errors="ignore")) | {" ", SPACE}
        self._known = known
        if extent != "word":
            self._kinds[list(map(ord, known))] = _ASKED
        for code in range(0x80):
            self._ask(code)
        of_interest = self._kinds[:256] != _ASKED
        of_interest[0x80:0xC0] = False
        of_interest[0xC0:] = True
        self._candidates = of_interest.tobytes()

    def extents(self, text: bytes) -> tuple[Indices, Indices]:
        """Where each of them begins and ends (exclusive) in a text's UTF-8."""
        places = np.frombuffer(text.translate(self._candidates), np.bool_).nonzero()[0]
        codes, widths = characters_at(np.frombuffer(text, np.uint8), places)
        kinds = self._kinds.take(codes)
        if not kinds.all():
            for code in set(codes[kinds == 0].tolist()):
                self._ask(code)
            kinds = self._kinds.take(codes)
        unknown = (kinds & _UNKNOWN) > 0
        begins, ends = places[unknown], (places + widths)[unknown]
        if self._extent == "run":
            return _joined(begins, ends)
        if self._extent == "word":
            edges = (kinds & _EDGE) > 0
            return _words(begins, ends, places[edges], (places + widths)[edges], len(text))
        return begins, ends

    def _ask(self, code: int) -> None:
        """Find out whether a character is unknown, and whether words end at it."""
        char = chr(code)
        words = self._see(f"a{char}a")
        kind = _ASKED
        # What becomes of a character that the tokenizer drops or replaces is no unknown token.
        if char not in self._known and "".join(words).count(char) == 1:
            kind |= _UNKNOWN
        if self._extent == "word" and not any(char in word and word != char for word in words):
            kind |= _EDGE
        self._kinds[code] = kind


def _joined(begins: Indices, ends: Indices) -> tuple[Indices, Indices]:
    """Runs of neighbours."""
    apart = begins[1:] != ends[:-1]
    return begins[np.append(True, apart)[: len(begins)]], ends[np.append(apart, True)[: len(ends)]]


def _words(
    begins: Indices, ends: Indices, edge_begins: Indices, edge_ends: Indices, size: int
) -> tuple[Indices, Indices]:
    """The words around characters, which reach from edge to edge; an edge is a word by itself."""
    following = np.searchsorted(edge_begins, begins)
    is_edge = np.append(edge_begins, size)[following] == begins
    word_begins = np.where(is_edge, begins, np.append(0, edge_ends)[following])
    word_ends = np.where(is_edge, ends, np.append(edge_begins, size)[following])
    first = np.append(True, word_begins[1:] != word_begins[:-1])[: len(begins)]
    return word_begins[first], word_ends[first]
