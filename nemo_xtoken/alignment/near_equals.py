"""Which tokens have an equal string near them on the other side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, Remainders, TokenStrings

Indices = NDArray[np.int64]

NEAR = 4
"""Of a long text, only the equals of so many tokens before and after a stretch's beginning can make it open."""

LONGEST_TESTED = 6
"""Tokens of either side in a stretch whose tokens are looked for one by one; of a longer one, two are open."""

_AROUND = np.array([[-1], [0], [2]])
"""The stretches with whose beginning begins what is near a stretch and where it ends, the stretch's own between."""

_BLOCK = 1 << 10
"""Stretches that are compared at a time."""


def count_open(nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings) -> Indices:
    """[m] how many tokens of each stretch may have an equal near them: a token or a run on the other side that is equal
    to the token, or a token that is equal to a run with it. Near is what is in the stretch or in one beside it and
    begins at most NEAR tokens before and after the stretch does. Too many, once in 2^16.

    nodes [2, g + 1], sizes [2, g]: where each stretch begins, and its tokens
    stretches   [m]
    """
    if not len(stretches):
        return np.zeros(0, np.int64)
    numbers = sizes.take(stretches, axis=1)
    largest: Indices = np.maximum(*numbers)
    if len(stretches) <= _BLOCK and int(largest.max()) <= LONGEST_TESTED:
        return _count_block(nodes, numbers, stretches, strings)
    counts = np.full(len(stretches), 2)
    tested = largest.argsort(kind="stable")[: int(np.count_nonzero(largest <= LONGEST_TESTED))]
    for begin in range(0, len(tested), _BLOCK):
        block = tested[begin : begin + _BLOCK]
        counts[block] = _count_block(nodes, numbers.take(block, axis=1), stretches[block], strings)
    return counts


def _count_block(nodes: Indices, numbers: Indices, stretches: Indices, strings: TokenStrings) -> Indices:
    around = nodes.take(stretches + _AROUND, axis=1, mode="clip")
    first, here, last = around[:, 0], around[:, 1], around[:, 2]
    runs = strings.remainders(here - NEAR, NEAR + max(NEAR, int(numbers.max())), (first, last))
    return _count(runs[:, NEAR + 1 - LONGEST_RUN :], runs[:, : 2 * NEAR], numbers)


def count_open_everywhere(
    nodes: Indices, sizes: Indices, stretches: Indices, strings: TokenStrings, *, singles: bool = False
) -> Indices:
    """`count_open` where all of the other side is near; for short texts.

    singles: stretches are one token for a run; only the token counts, and runs that are equal to it do not
    """
    if not len(stretches):
        return np.zeros(0, np.int64)
    sizes = sizes.take(stretches, axis=1)
    numbers = np.where(sizes == 1, 1, 0) if singles else np.minimum(sizes, LONGEST_TESTED)
    begins = nodes.take(stretches, axis=1) + 1 - LONGEST_RUN
    inside = first, last = np.zeros((2, 1), np.int64), nodes[:, -1:]
    around = strings.remainders(begins, int(numbers.max()) + LONGEST_RUN - 1, inside)
    near = strings.remainders(first, int(last.max()), inside)
    counts = _count(around, near[:1] if singles else near, numbers)
    return np.where(sizes.max(axis=0) > LONGEST_TESTED, 2, counts)


def _count(around: Remainders, near: Remainders, numbers: Indices) -> Indices:
    """[m] how many tokens are equal to a near run, or are or are part of a run that is equal to a near token.

    around   [LONGEST_RUN, p, 2, m] runs of each length from each place on; the tokens, numbers [2, m] of them, begin
             at place LONGEST_RUN - 1
    near     [LONGEST_RUN, k, 2, m] or [1, k, 2, m] what is near them on their own side; that of the other side counts
    """
    most, before = int(numbers.max()), LONGEST_RUN - 1
    around, numbers = around[:, :, ::-1], numbers[::-1]
    tokens = around[0, before : before + most]
    is_open: Flags = np.logical_or.reduce(tokens[:, None] == near.reshape(-1, *near.shape[2:]), axis=1)
    begins: Flags = np.logical_or.reduce(around[1:, : before + most, None] == near[0], axis=2)
    for back in range(before, -1, -1):
        if 0 < back < before:
            begins[back - 1] |= begins[back]  # runs of more than so many tokens
        is_open |= begins[max(back - 1, 0), before - back : before - back + most]
    is_open &= np.arange(most)[:, None, None] < numbers
    return np.add.reduce(is_open, axis=(0, 1))
