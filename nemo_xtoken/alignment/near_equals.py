"""Which tokens have an equal string near them on the other side."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, MARGIN, Flags, TokenStrings

Indices = NDArray[np.int64]
Remainders = NDArray[np.uint16]

PADDING = 2
"""Stretches that a window has around those that are open."""

NEAR = MARGIN
"""Of a long text, only the equals of so many tokens before and after it can make a stretch open."""

LONGEST_TESTED = 6
"""Tokens of either side in a stretch whose tokens are looked for one by one."""

_BLOCK = 1 << 10
"""Stretches that are compared at a time."""


def count_open(nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings) -> Indices:
    """[m] how many tokens of each stretch may have an equal near them: a token or a run on the other side that is equal
    to the token, or a token that is equal to a run with it. Near are NEAR tokens before and after the stretch, at most
    PADDING stretches from it. Too many, once in 2^16.

    nodes [2, g + 1], sizes [2, g]: where each stretch begins, and its tokens
    stretches   [m] of at most LONGEST_TESTED tokens on either side
    """
    counts = np.zeros(len(stretches), np.int64)
    largest: Indices = sizes.take(stretches, axis=1).max(axis=0)
    order = largest.argsort(kind="stable") if len(stretches) > _BLOCK else np.arange(len(stretches))
    for begin in range(0, len(stretches), _BLOCK):
        block = order[begin : begin + _BLOCK]
        counts[block] = _count_block(nodes, sizes, stretches[block], strings)
    return counts


def _count_block(nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings) -> Indices:
    numbers = sizes.take(stretches, axis=1)
    most = int(numbers.max())
    runs = strings.remainders(nodes.take(stretches, axis=1) - NEAR, max(2 * NEAR, NEAR + most))
    around, near = runs[:, NEAR + 1 - LONGEST_RUN : NEAR + most], runs[:, : 2 * NEAR, ::-1]
    is_own: Flags = np.arange(most)[:, None, None] < numbers
    is_open = _open(around, near) & is_own
    counts = np.zeros(len(stretches), np.int64)
    maybe: Indices = np.logical_or.reduce(is_open, axis=(0, 1)).nonzero()[0]
    if len(maybe):
        near = _only_near(nodes, stretches[maybe], np.take(near, maybe, axis=-1))
        around = np.take(around, maybe, axis=-1)
        counts[maybe] = np.add.reduce(_open(around, near) & np.take(is_own, maybe, axis=-1), axis=(0, 1))
    return counts


def _only_near(nodes: Indices, stretches: Indices, near: Remainders) -> Remainders:
    """[LONGEST_RUN, 2 * NEAR, 2, m] without what is more than PADDING stretches away: 0 in its place."""
    here, first, last = (
        nodes.take(stretches + steps, axis=1, mode="clip")[::-1] for steps in (0, -PADDING, PADDING + 1)
    )
    places: Indices = np.arange(-NEAR, NEAR)[:, None, None]
    return np.where((places >= first - here) & (places < last - here), near, np.uint16(0))


def count_open_everywhere(
    nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings, *, singles: bool = False
) -> Indices:
    """`count_open` where all of the other side is near; for short texts.

    singles: stretches are one token for a run; only the token counts, and runs that are equal to it do not
    """
    if not len(stretches):
        return np.zeros(0, np.int64)
    numbers = sizes.take(stretches, axis=1)
    if singles:
        numbers = np.where(numbers == 1, 1, 0)
    most, ends = int(numbers.max()), nodes[::-1, -1:]
    around = strings.remainders(nodes.take(stretches, axis=1) + 1 - LONGEST_RUN, most + LONGEST_RUN - 1)
    near = strings.remainders(np.zeros((2, 1), np.int64), int(ends.max()))[:, :, ::-1]
    inside = cast("Flags", np.arange(near.shape[1])[:, None, None] < ends)
    near = np.where(inside, near, np.uint16(0))
    is_own: Flags = np.arange(most)[:, None, None] < numbers
    return (_open(around, near[:1] if singles else near) & is_own).sum(axis=(0, 1))


def _open(around: Remainders, near: Remainders) -> Flags:
    """[c, 2, m] whether a run with each token is equal to one of the near tokens, or the token to one of the near runs.

    around  [LONGEST_RUN, LONGEST_RUN - 1 + c, 2, m] runs of each length from each place on; the tokens are the last c
    near    [LONGEST_RUN, k, 2, m] those of the other side, or [1, k, 2, m] the tokens alone
    """
    before = LONGEST_RUN - 1
    count = around.shape[1] - before
    own: Flags = around[None, 0, before:, None] == near[:, None]
    is_open = np.logical_or.reduce(own, axis=(0, 2))
    runs: Flags = around[1:, :, None] == near[0]
    of_length = np.logical_or.reduce(runs, axis=2)
    reaches: Flags = of_length[-1]  # a run that is as long or longer and begins at the place
    for back in range(before, -1, -1):
        if 0 < back < before:
            reaches = reaches | of_length[back - 1]
        is_open |= reaches[before - back : before - back + count]
    return is_open
