"""Texts of which a tokenizer changes nothing but white space, and perhaps case, and what is unknown to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from nemo_xtoken.tokenizers.seen_texts import SeenTexts, UnknownExtents
from nemo_xtoken.tokenizers.token_batch import Ids, Indices, sums
from nemo_xtoken.tokenizers.unknown import UnknownTokens

_BLANKS = b"\t\n\r "
_SPACE = 0x20


@dataclass(frozen=True, kw_only=True)
class WhiteSpaceView:
    """How a tokenizer sees a text.

    front    whether a space is put in front: none, always, or where the text has none there
    runs     what becomes of white space: kept, one space for each run of it, or dropped
    blanks   the characters that count as white space
    strips   whether white space at the end is dropped
    lower    whether ASCII letters become small
    dropped  bytes that the tokenizer has no token for, and leaves out
    unknown  what its unknown token stands for. None: that is left to the library
    """

    front: Literal["none", "always", "missing"] = "none"
    runs: Literal["kept", "single", "dropped"] = "kept"
    blanks: bytes = _BLANKS
    strips: bool = False
    lower: bool = False
    dropped: bytes = b""
    unknown: UnknownTokens | None = None

    def __call__(self, texts: Sequence[bytes], ids: Ids) -> SeenTexts:
        """The texts as seen. ids: of all their tokens, which tell whether any is unknown"""
        unknown = self.unknown if self.unknown is not None and self.unknown.token_id in ids else None
        # Something in front keeps what is unknown in one text from that in the next.
        front = b"" if self.front == "none" and unknown is None else b" "
        parts, taken = self._parts(texts)
        content = b"".join([front + part for part in parts])
        if self._table is not None:
            content = content.translate(self._table)
        begins = sums(_sizes(parts) + len(front))
        dropped = self._dropped(content, begins[:-1])
        if front and self.front != "always" and self.runs != "dropped":
            dropped = np.sort(np.append(dropped, self._unseen_fronts(content, begins[:-1])))
        extents = None if unknown is None else UnknownExtents(unknown.token_id, *unknown.extents(content))
        return SeenTexts(content, begins, begins[:-1] + len(front) - taken, _sizes(texts), dropped, extents)

    def _parts(self, texts: Sequence[bytes]) -> tuple[Sequence[bytes], Indices]:
        """The texts without the white space at their edges that is not seen, and [d] bytes of it at the front."""
        parts = [text.rstrip(self.blanks) for text in texts] if self.strips else texts
        if self.runs != "single" or self.front != "none":
            return parts, np.zeros(len(texts), np.int64)
        stripped = [part.lstrip(self.blanks) for part in parts]
        return stripped, _sizes(parts) - _sizes(stripped)

    @cached_property
    def _table(self) -> bytes | None:
        """[256] what becomes of each byte. None: it stays"""
        if self.runs == "kept" and not self.lower:
            return None
        blanks = b"" if self.runs == "kept" else self.blanks
        table = bytes.maketrans(blanks, b" " * len(blanks))
        return table.lower() if self.lower else table

    def _dropped(self, content: bytes, begins: Indices) -> Indices:
        """Places that are passed over: of a run of white space that counts as one, all but the last."""
        if self.runs == "single":
            blank = np.frombuffer(content, np.uint8) == _SPACE
            passed = blank[:-1] & blank[1:]
            last = begins - 1
            passed[last[last >= 0]] = False
            return passed.nonzero()[0]
        without = self.dropped if self.runs == "kept" else self.dropped + b" "
        return _places_of(without, content) if without else np.zeros(0, np.int64)

    def _unseen_fronts(self, content: bytes, begins: Indices) -> Indices:
        """Of the places of what was put in front of each text, those where the tokenizer puts nothing."""
        if self.front == "none":
            return begins
        has_one = np.frombuffer(content, np.uint8).take(begins + 1, mode="clip") == _SPACE
        return begins[has_one]


def _places_of(some: bytes, content: bytes) -> Indices:
    """Where a text has one of some bytes."""
    among = bytes(byte in some for byte in range(256))
    return np.frombuffer(content.translate(among), np.bool_).nonzero()[0]


def _sizes(texts: Sequence[bytes]) -> Indices:
    """[d] bytes of each text."""
    return np.fromiter(map(len, texts), np.int64, len(texts))


def spaced_view(see: Callable[[str], str], unknown: UnknownTokens | None) -> WhiteSpaceView:
    """How a tokenizer treats white space, by what it sees in place of some short texts."""
    prefixes = see("a").startswith(" ")
    merges = see(" a") == see("a")
    singles = "  " not in see("a  a   a")
    blanks = bytes(blank for blank in _BLANKS if see(f"a{chr(blank)}a") == see("a a"))
    return WhiteSpaceView(
        front=("missing" if merges and not singles else "always") if prefixes else "none",
        runs="single" if singles else "kept",
        blanks=blanks,
        strips=singles and see("a ") == see("a"),
        unknown=unknown,
    )
