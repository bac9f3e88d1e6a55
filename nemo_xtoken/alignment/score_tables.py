"""Best paths through tables of the paper's scores, many small tables at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, Numbers, TokenStrings

Indices = NDArray[np.int64]

# A path that leaves out no token and takes each with its equal scores 1.5 for every token of both sides. Every other
# path loses against it, in units of 1.5: 1 where one token stands for several, 2 for each token left out. The pair of
# unequal tokens, which loses 4, is two tokens left out.
LOSS_OF_RUN, LOSS_OF_GAP = 1, 2

_RUNS = range(2, LONGEST_RUN + 1)
PAIRS = ((1, 1, 0), *((1, k, LOSS_OF_RUN) for k in _RUNS), *((k, 1, LOSS_OF_RUN) for k in _RUNS))
"""Steps that take equal strings: student tokens, teacher tokens, loss."""

_STUDENT_GAP, _TEACHER_GAP, _STOP = range(len(PAIRS), len(PAIRS) + 3)
_STEPS: Indices = np.array([*(pair[:2] for pair in PAIRS), (1, 0), (0, 1), (0, 0)])

# A loss and the step that leads to it are one number, _UNIT * loss + step: less loss wins, then the earlier step.
_UNIT = 16
_FAR = np.int16(1 << 14)
_LOSS = np.int16(-_UNIT)
LONGEST_WINDOW = 256
"""Tokens of both sides together; so few that every loss in a window stays below _FAR. Cells beside it are not read."""

_CELLS = 1 << 20
"""Cells of the tables that are held at a time; each takes some 30 bytes."""


def better_chunks(windows: Indices, losses: Indices, strings: TokenStrings) -> tuple[Flags, Indices]:
    """The windows [w] through which a path loses less than is known of each, and the chunks [c, 4] of the best paths
    through these, in no order.

    windows  [w, 4] student start, student end, teacher start, teacher end; at most LONGEST_WINDOW tokens
    losses   [w] in the units of LOSS_OF_RUN
    Chunks have the windows' columns. Of equally good paths one is taken that has more tokens in chunks at its end.
    """
    better = np.zeros(len(windows), np.bool_)
    found = [np.zeros((0, 4), np.int64)]
    for places in _groups(windows):
        group = windows[places]
        steps, least = _fill(strings, group)
        chosen = least < losses[places]
        if chosen.any():
            better[places] = chosen
            found.append(_trace(steps[:, :, chosen], group[chosen]))
    return better, np.concatenate(found)


def _groups(windows: Indices) -> Iterator[Indices]:
    """The places of windows of similar size, in groups whose tables fit into _CELLS."""
    largest = np.maximum(windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2])
    begin = 0
    for size in (16, 64, LONGEST_WINDOW):
        same = ((largest > begin) & (largest <= size)).nonzero()[0]
        count = _CELLS // size**2
        for first in range(0, len(same), count):
            yield same[first : first + count]
        begin = size


def _fill(strings: TokenStrings, windows: Indices) -> tuple[NDArray[np.int8], Indices]:
    """[rows + 1, columns + 1, windows] the step that leads to each cell, and [windows] the least loss at each end.
    Rows are student tokens.

    Losses are held without those of the gaps that lead from the first column to theirs: so the least of the cells up to
    one in its row is what leads to it by gaps as well.
    """
    ends = windows[:, 1::2] - windows[:, ::2]
    across, down = _costs(*(strings.runs_to(side, windows[:, 2 * side], ends[:, side]) for side in (0, 1)))
    _, rows, columns, count = across.shape
    # The least that leads to a cell other than by leaving out its teacher token, with the step, and with that as well.
    best = np.full((rows + 1, columns, count), _FAR)
    losses = np.zeros((LONGEST_RUN + rows, LONGEST_RUN + columns, count), np.int16)
    by_row, by_column, by_window = losses.strides
    in_row = as_strided(
        losses[LONGEST_RUN - 1 :], (rows, len(across), columns, count), (by_row, by_column, by_column, by_window)
    )
    in_column = as_strided(
        losses[:, LONGEST_RUN - 1 :], (rows, len(down), columns, count), (by_row, by_row, by_column, by_window)
    )
    found = np.empty((len(across) + len(down), columns, count), np.int16)
    for row in range(rows):
        np.add(in_row[row], across[:, row], out=found[: len(across)])
        np.add(in_column[row], down[:, row], out=found[len(across) :])
        np.minimum.reduce(found, axis=0, out=best[row + 1])
        np.minimum.accumulate(best[row + 1] & _LOSS, axis=0, out=losses[LONGEST_RUN + row, LONGEST_RUN:])
    losses = losses[LONGEST_RUN - 1 :, LONGEST_RUN:]
    steps = np.where(best & _LOSS == losses, best & ~_LOSS, np.int16(_TEACHER_GAP)).astype(np.int8)
    steps[0, 0] = _STOP
    least = losses[ends[:, 0], ends[:, 1], np.arange(count)].astype(np.int64) // _UNIT
    return steps, least + LOSS_OF_GAP * ends[:, 1]


def _costs(student: Numbers, teacher: Numbers) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """What the steps to each cell cost, _FAR where there is none; without the gaps that lead over their columns.

    [LONGEST_RUN + 1, rows, columns + 1, windows] of one student token, for the most teacher tokens first, for none
    last; [LONGEST_RUN - 1, ...] of several student tokens, the most first
    """
    costs = np.array([_UNIT * (loss - LOSS_OF_GAP * right) + step for step, (_, right, loss) in enumerate(PAIRS)])
    costs = costs.astype(np.int16)[:, None, None, None]
    rows, columns, count = student.shape[1], teacher.shape[1] + 1, student.shape[2]
    across = np.full((LONGEST_RUN + 1, rows, columns, count), _FAR)
    down = np.full((LONGEST_RUN - 1, rows, columns, count), _FAR)
    across[-1] = _UNIT * LOSS_OF_GAP + _STUDENT_GAP
    np.copyto(across[:-1, :, 1:], costs[LONGEST_RUN - 1 :: -1], where=student[:1, :, None] == teacher[::-1, None])
    np.copyto(down[:, :, 1:], costs[: LONGEST_RUN - 1 : -1], where=student[:0:-1, :, None] == teacher[:1, None])
    return across, down


def _trace(steps: NDArray[np.int8], windows: Indices) -> Indices:
    """The chunks [c, 4] on the way back from the end of each window."""
    _, columns, count = steps.shape
    back: Indices = (_STEPS[:, 0] * columns + _STEPS[:, 1]) * count
    ends = windows[:, 1::2] - windows[:, ::2]
    cell = cast("Indices", (ends[:, 0] * columns + ends[:, 1]) * count + np.arange(count))
    cells: list[Indices] = []
    taken: list[NDArray[np.int8]] = []
    while True:
        step = steps.ravel()[cell]
        if (step == _STOP).all():
            break
        cells.append(cell)
        taken.append(step)
        cell = cell - back[step]
    step = np.concatenate([np.zeros(0, np.int8), *taken])
    pairs = (step < len(PAIRS)).nonzero()[0]
    row_column, window = np.divmod(np.concatenate([np.zeros(0, np.int64), *cells])[pairs], count)
    row, column = np.divmod(row_column, columns)
    down, right = _STEPS[step[pairs]].T
    student, teacher = windows[window, 0] + row, windows[window, 2] + column
    return np.stack([student - down, student, teacher - right, teacher], axis=1)
