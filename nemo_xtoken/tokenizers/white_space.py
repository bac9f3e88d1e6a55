"""Texts of which a tokenizer changes nothing but white space, and perhaps case, and what is unknown to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.token_batch import UNKNOWN, Ids, Indices, SeenTexts, sums
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
        if self.runs == "kept" and unknown is None and not self.lower and not self.dropped:
            return self._all_kept(texts)
        return self._some_kept(texts, unknown)

    def _all_kept(self, texts: Sequence[bytes]) -> SeenTexts:
        fronts = self._fronts(texts)
        front_sizes, sizes = _sizes(fronts), _sizes(texts)
        begins = sums(front_sizes + sizes)
        source = b"".join([part for pair in zip(fronts, texts, strict=True) for part in pair])
        return SeenTexts(source, begins, source, begins[:-1] + front_sizes, sizes)

    def _fronts(self, texts: Sequence[bytes]) -> list[bytes]:
        if self.front == "missing":
            return [b"" if text.startswith(b" ") else b" " for text in texts]
        return [b" " if self.front == "always" else b""] * len(texts)

    def _some_kept(self, texts: Sequence[bytes], unknown: UnknownTokens | None) -> SeenTexts:
        parts = [text.rstrip(self.blanks) for text in texts] if self.strips else texts
        # Where runs count, the line feed in front of a text and the white space at its beginning are one.
        source = (b" " if self.runs == "kept" else b"\n").join([b"", *parts])
        starts = sums(_sizes(parts) + 1)
        lowered = source.lower() if self.lower else source
        blanks = b"" if self.runs == "kept" else self.blanks
        seen = np.frombuffer(bytearray(lowered.translate(bytes.maketrans(blanks, b" " * len(blanks)))), np.uint8)
        seen[starts[:-1]] = _SPACE
        keep = self._kept(seen, starts[:-1])
        unknown_ends = None
        if unknown is not None:
            begins, unknown_ends = unknown.extents(seen)
            keep[_within(begins, unknown_ends)] = False
            keep[begins] = True
            seen[begins] = UNKNOWN[0]
        places = keep.nonzero()[0]
        begins = np.searchsorted(places, starts)
        return SeenTexts(
            seen.take(places).tobytes(), begins, source, starts[:-1] + 1, _sizes(texts), places, unknown_ends
        )

    def _kept(self, seen: NDArray[np.uint8], fronts: Indices) -> NDArray[np.bool_]:
        """[bytes] which bytes are seen. fronts: [d] the byte in front of each text"""
        keep = np.ones(len(seen), np.bool_) if self.runs == "kept" else seen != _SPACE
        if self.runs == "single":
            keep[1:] |= keep[:-1]
        keep[fronts] = self.front != "none"
        if self.runs == "kept" and self.front == "missing":
            keep[fronts] = np.append(seen, 0)[fronts + 1] != _SPACE
        if self.dropped:
            keep[np.isin(seen, np.frombuffer(self.dropped, np.uint8))] = False
        return keep


def _within(begins: Indices, ends: Indices) -> Indices:
    """All places from begins to ends (exclusive)."""
    counts = ends - begins
    places: Indices = np.repeat(ends - counts.cumsum(), counts)
    return places + np.arange(len(places))


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
