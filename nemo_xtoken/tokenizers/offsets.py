"""Spans of tokens by the character offsets of the library that made them, held against what the tokens stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.spans import char_widths, code_points, settle
from nemo_xtoken.types import Encoding

StandsFor = Callable[[Sequence[int], str], bool | None]
"""Whether tokens stand for a part of a text. None: their bytes don't tell, as those of an unknown token."""


def from_char_offsets(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str, stands_for: StandsFor
) -> Encoding:
    """Tokens with the characters of the text that each comes from; the offsets of two tokens may overlap.

    Where tokens don't stand for what the offsets say, they are not exact, and between two such the text isn't divided.
    """
    begin = np.concatenate(([0], np.cumsum(char_widths(code_points(text)))))
    chars = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    certain = np.ones(len(chars), np.bool_)
    certain[:-1] = chars[1:, 0] >= chars[:-1, 1]
    last = certain.nonzero()[0]
    ends = np.maximum.accumulate(chars[last, 1])
    ends[-1:] = len(text)
    tokens = pairwise([0, *(last + 1).tolist()])
    parts = pairwise([0, *ends.tolist()])
    fails = _failing([stands_for(ids[i:j], text[a:b]) for (i, j), (a, b) in zip(tokens, parts, strict=True)])
    certain[last[:-1]] = ~(fails[:-1] & fails[1:])
    found = settle(np.asarray(ids, np.int32), begin[chars[:, 1]], certain, int(begin[-1]))
    if not fails.any():
        return found
    exact = ~np.repeat(fails, np.diff(last, prepend=-1))
    return Encoding(found.ids, found.starts, found.ends, exact=exact if found.exact is None else exact & found.exact)


def _failing(verdicts: Sequence[bool | None]) -> NDArray[np.bool_]:
    """Which are False, with those beside them that are None."""
    fails = [verdict is False for verdict in verdicts]
    for order in (range(1, len(fails)), range(len(fails) - 2, -1, -1)):
        step = order.step
        for number in order:
            fails[number] |= verdicts[number] is None and fails[number - step]
    return np.array(fails, np.bool_)
