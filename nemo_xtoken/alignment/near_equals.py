"""Which tokens have an equal string near them on the other side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, TokenStrings

Indices = NDArray[np.int64]
Remainders = NDArray[np.uint16]

PADDING = 2
"""Stretches that a window has around those that are open."""

NEAR = 4
"""Of a long text, only the equals of so many tokens before and after it can make a stretch open."""

LONGEST_TESTED = 6
"""Tokens of either side in a stretch whose tokens are looked for one by one."""

_BLOCK = 1 << 9
"""Stretches that are compared at a time."""

_LENGTHS: Indices = np.repeat(np.arange(1, LONGEST_RUN + 1), np.arange(1, LONGEST_RUN + 1))
_OFFSETS: Indices = np.concatenate([np.arange(length) for length in range(1, LONGEST_RUN + 1)])


def count_open(
    nodes: Indices,
    sizes: Indices,
    stretches: Indices,
    strings: TokenStrings,
    *,
    everywhere: bool,
    singles: bool = False,
) -> Indices:
    """[m] how many tokens of each stretch may have an equal near them: a token or a run on the other side that is equal
    to the token, or a token that is equal to a run with it. Too many, once in 2^16.

    nodes [2, g + 1], sizes [2, g]: where each stretch begins, and its tokens
    stretches   [m] of at most LONGEST_TESTED tokens on either side
    everywhere  all of the other side is near, else NEAR tokens before and after, at most PADDING stretches from here
    singles     stretches are one token for a run: only the token counts, and runs that are equal to it do not
    """
    if len(stretches) <= _BLOCK:
        return _count_block(nodes, sizes, stretches, strings, everywhere, singles)
    counts = np.empty(len(stretches), np.int64)
    by_size = sizes[:, stretches].max(axis=0).argsort()
    for begin in range(0, len(stretches), _BLOCK):
        places = by_size[begin : begin + _BLOCK]
        counts[places] = _count_block(nodes, sizes, stretches[places], strings, everywhere, singles)
    return counts


def _count_block(
    nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings, everywhere: bool, singles: bool
) -> Indices:
    if not len(stretches):
        return np.zeros(0, np.int64)
    counts = sizes[:, stretches]
    if singles:
        counts = np.where(counts == 1, 1, 0)
    near = _near(nodes, stretches, strings, everywhere)
    own = (nodes[:, stretches] + strings.begins[:, None])[:, None] + np.arange(int(counts.max()))[:, None]
    flat = strings.remainders.ravel()
    runs = flat.take(own + ((_LENGTHS - 1) * len(strings) - _OFFSETS)[:, None, None, None], mode="clip")
    is_open: Flags = _any_equal(runs, flat.take(near, mode="clip")[None])
    if not singles:
        lengths = np.arange(1, LONGEST_RUN)[:, None, None, None] * len(strings)
        is_open = is_open | _any_equal(runs[:1], flat.take(near + lengths, mode="clip"))
    places: Indices = np.arange(len(is_open[0]))
    is_own: Flags = places[:, None] < counts[:, None]
    return np.add.reduce(is_open & is_own, axis=(0, 1), dtype=np.int64)


def _any_equal(own: Remainders, near: Remainders) -> Flags:
    """[2, c, m] whether any of own [r, 2, c, m] is equal to one of near [l, 2, k, m]; r or l is 1."""
    equal: Flags = own[:, :, :, None] == near[:, :, None]
    return np.logical_or.reduce(np.logical_or.reduce(equal, axis=0), axis=2)


def _near(nodes: Indices, stretches: Indices, strings: TokenStrings, everywhere: bool) -> Indices:
    """[2, k, m] the places in `strings` that are near the student's and the teacher's tokens of each stretch, on the
    other side; 0, which nothing is equal to, in the place of those that are not near."""
    other = nodes[::-1]
    if everywhere:
        places = np.repeat(np.arange(int(nodes[:, -1].max()))[:, None], len(stretches), axis=1)[None]
        is_near = places < other[:, -1, None, None]
    else:
        places = other[:, stretches][:, None] + np.arange(-NEAR, NEAR)[:, None]
        first = other[:, np.maximum(stretches - PADDING, 0)]
        last = other[:, np.minimum(stretches + PADDING + 1, nodes.shape[1] - 1)]
        is_near = (places >= first[:, None]) & (places < last[:, None])
    return np.where(is_near, places + strings.begins[::-1, None, None], 0)
