"""Texts of which a tokenizer changes nothing but white space, and perhaps case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.types import Encoding

_SPACE = 0x20
_BLANKS = np.isin(np.arange(256), (0x09, 0x0A, 0x0D, _SPACE))


@dataclass(frozen=True)
class Kept:
    """The bytes of a text that a tokenizer keeps.

    seen  [k] bytes, as the tokenizer sees them
    ends  [k + 1] int64, where in the text the first 0 .. k of them end; white space in front is before them all
    """

    seen: bytes
    ends: NDArray[np.int64]

    def tokens(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], joined: bytes) -> Encoding | None:
        """Tokens that make up these bytes, perhaps with a space in front; None where they don't.

        lengths: [n] bytes of each token. joined: their bytes, one after the other.
        """
        prefix = len(joined) - len(self.seen)
        if not len(ids) or prefix not in (0, 1) or joined != b" " * prefix + self.seen:
            return None
        bounds = np.zeros(len(ids) + 1, np.int64)
        bounds[1:] = self.ends[lengths.cumsum() - prefix]
        return Encoding(ids, bounds[:-1], bounds[1:])


def single_spaced(data: bytes) -> Kept:
    """A text without white space at its ends, and with one space for each run of it."""
    codes = np.frombuffer(data, np.uint8)
    blank = _BLANKS[codes]
    keep = ~blank
    keep[1:] |= keep[:-1]
    places = keep.nonzero()[0]
    if len(places) and blank[places[-1]]:
        places = places[:-1]
    seen = codes[places]
    became_space = blank[places] & (seen != _SPACE)
    ends = _ends(places, len(data))
    # What only became a space ends where the next byte begins, with the blanks that follow it.
    changed = became_space.nonzero()[0]
    ends[changed + 1] = places[changed + 1]
    seen[changed] = _SPACE
    return Kept(seen.tobytes(), ends)


def lower_words(data: bytes) -> Kept:
    """A text in lower case (ASCII) without its white space."""
    codes = np.frombuffer(data.lower(), np.uint8)
    places = (~_BLANKS[codes]).nonzero()[0]
    return Kept(codes[places].tobytes(), _ends(places, len(data)))


def _ends(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Each kept byte ends after itself; the last one with the text."""
    ends = np.zeros(len(places) + 1, np.int64)
    ends[0] = places[0] if len(places) else 0
    ends[1:] = places + 1
    ends[-1] = size
    return ends
