"""Best paths through tables of the paper's scores, many small tables at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, NAMELESS, Flags, Numbers, TokenStrings

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
LONGEST_WINDOW = 256
"""Tokens of both sides together; so few that every loss in a window stays below _FAR. Cells beside it are not read."""

_CELLS = 1 << 20
"""Cells of the tables that are held at a time; each takes some 20 bytes."""


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
        student, teacher = (_runs(strings, side, group) for side in (0, 1))
        steps, least = _fill(student, teacher, group[:, 1::2] - group[:, ::2])
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


def _runs(strings: TokenStrings, side: int, windows: Indices) -> Numbers:
    """[LONGEST_RUN, most tokens of a window, windows] runs of each length from each place of a side on; nameless if it
    would end outside."""
    starts, ends = windows[:, 2 * side], windows[:, 2 * side + 1]
    places = np.minimum(starts + np.arange(int((ends - starts).max()))[:, None], ends)
    runs = strings.runs(places + strings.begins[side])
    for length, of_length in enumerate(runs):
        of_length[places + length >= ends] = NAMELESS[side]
    return runs


def _fill(student: Numbers, teacher: Numbers, ends: Indices) -> tuple[NDArray[np.int8], Indices]:
    """[rows + 1, columns + 1, windows] the step that leads to each cell, and [windows] the least loss at each end.
    Rows are student tokens. ends: [windows, 2] the tokens of each window."""
    _, rows, count = student.shape
    columns = teacher.shape[1]
    costs = _costs(student, teacher)
    gaps = np.arange(columns + 1, dtype=np.int16)[:, None] * np.int16(_UNIT * LOSS_OF_GAP)
    # The least that leads to a cell other than by leaving out its teacher token, with the step, and with that as well.
    best = np.empty((rows + 1, columns + 1, count), np.int16)
    losses = np.empty_like(best)
    best[0] = _FAR
    losses[0] = gaps
    for row in range(1, rows + 1):
        np.add(losses[row - 1], np.int16(_UNIT * LOSS_OF_GAP + _STUDENT_GAP), out=best[row])
        for down, right, cost in costs:
            if down <= row:
                target = best[row, right:]
                np.minimum(target, losses[row - down, :-right] + cost[row - down], out=target)
        loss = best[row] & np.int16(-_UNIT)
        loss -= gaps
        np.minimum.accumulate(loss, axis=0, out=losses[row])
        losses[row] += gaps
    steps = np.where(best & np.int16(-_UNIT) == losses, best & np.int16(_UNIT - 1), np.int16(_TEACHER_GAP))
    steps[0, 0] = _STOP
    return steps.astype(np.int8), losses[ends[:, 0], ends[:, 1], np.arange(count)].astype(np.int64) // _UNIT


def _costs(student: Numbers, teacher: Numbers) -> list[tuple[int, int, NDArray[np.int16]]]:
    """Of each kind of step by which any window has equal strings: rows down, columns right, and what it costs from
    each cell, [rows - down + 1, columns - right + 1, windows]; _FAR where it is none."""
    rows, columns = student.shape[1], teacher.shape[1]
    costs: list[tuple[int, int, NDArray[np.int16]]] = []
    for step, (down, right, loss) in enumerate(PAIRS):
        if down > rows or right > columns:
            continue
        equal = student[down - 1, : rows - down + 1, None] == teacher[right - 1, None, : columns - right + 1]
        if equal.any():
            costs.append((down, right, np.where(equal, np.int16(_UNIT * loss + step), _FAR)))
    return costs


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
