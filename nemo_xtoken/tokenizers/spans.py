"""Byte spans of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.types import Encoding

_LEADING_BITS = np.array([0, 0x7F, 0x1F, 0x0F, 0x07], np.uint8)
"""[5] those of a character's first byte that are bits of its number, by its bytes."""


def encode_utf8(text: str) -> bytes:
    """UTF-8 of a text. Raises TokenizerError for a lone surrogate, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"expected text, got a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
            "read the text with errors='replace'"
        ) from None


def code_points(text: str) -> NDArray[np.uint32]:
    """[characters] numbers of a text's characters."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def char_widths(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """[characters] bytes of each character in UTF-8."""
    return 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)


def characters_at(text: NDArray[np.uint8], places: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """[n] numbers of the characters that begin at places of a text's UTF-8, and bytes of each."""
    lead = text.take(places)
    codes, widths = lead.astype(np.intp), np.ones(len(places), np.int64)
    longer = (lead >= 0xC0).nonzero()[0]
    if len(longer):
        codes[longer], widths[longer] = _longer_characters_at(text, places[longer])
    return codes, widths


def _longer_characters_at(
    text: NDArray[np.uint8], places: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    lead = text.take(places)
    widths = 2 + (lead >= 0xE0).astype(np.int64) + (lead >= 0xF0)
    codes = (lead & _LEADING_BITS.take(widths)).astype(np.intp)
    for step in range(1, int(widths.max())):
        following = text.take(places + step, mode="clip") & 0x3F
        codes = np.where(widths > step, codes << 6 | following, codes)
    return codes, widths


def settle(ids: NDArray[np.int32], ends: NDArray[np.int64], certain: NDArray[np.bool_], size: int) -> Encoding:
    """Tile a text of `size` bytes with tokens of which some ends are uncertain.

    Tokens up to the next certain end share one span: the last has it all, the others are empty, and none is exact.
    """
    if not len(ids):
        return Encoding(ids, np.zeros(0, np.int64), np.zeros(0, np.int64))
    certain[-1] = True
    all_certain = bool(certain.all())
    bounds = np.zeros(len(ids) + 1, np.int64)
    np.maximum.accumulate(ends if all_certain else np.where(certain, ends, 0), out=bounds[1:])
    bounds[-1] = size
    if all_certain:
        return Encoding(ids, bounds[:-1], bounds[1:])
    exact = certain.copy()
    exact[1:] &= certain[:-1]
    return Encoding(ids, bounds[:-1], bounds[1:], exact=exact)
