"""Best paths through tables of the paper's scores, many small tables at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Numbers, TokenStrings

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


def best_chunks(windows: Indices, student: TokenStrings, teacher: TokenStrings) -> Indices:
    """The chunks [c, 4] of the best path through each window, in no order.

    windows  [w, 4] student start, student end, teacher start, teacher end; at most LONGEST_WINDOW tokens
    Chunks have the same columns. Of equally good paths one is taken that has more tokens in chunks at its end.
    """
    found = [_solve(group, student, teacher) for group in _groups(windows)]
    return np.concatenate(found) if found else np.zeros((0, 4), np.int64)


def _groups(windows: Indices) -> Iterator[Indices]:
    """Windows of similar size, in groups whose tables fit into _CELLS."""
    largest = np.maximum(windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2])
    begin = 0
    for size in (8, 16, 64, LONGEST_WINDOW):
        same = windows[(largest > begin) & (largest <= size)]
        count = _CELLS // size**2
        for first in range(0, len(same), count):
            yield same[first : first + count]
        begin = size


def _solve(windows: Indices, student: TokenStrings, teacher: TokenStrings) -> Indices:
    steps = _fill(_padded(student, windows[:, :2]), _padded(teacher, windows[:, 2:]))
    return _trace(steps, windows)


def _padded(strings: TokenStrings, spans: Indices) -> list[Numbers]:
    """For each length of a run: [windows, most tokens of a window] runs from each place on, nameless at the end."""
    size = int((spans[:, 1] - spans[:, 0]).max())
    places = spans[:, :1] + np.arange(size)
    padded: list[Numbers] = []
    for length in range(1, LONGEST_RUN + 1):
        inside = places + length <= spans[:, 1:]
        padded.append(np.where(inside, strings.runs(places, length), np.uint64(strings.nameless)))
    return padded


def _fill(student: Sequence[Numbers], teacher: Sequence[Numbers]) -> NDArray[np.int8]:
    """[rows + 1, windows, columns + 1] the step that leads to each cell; rows are student tokens."""
    count, rows = student[0].shape
    columns = teacher[0].shape[1]
    costs = [_costs(step, student, teacher) for step in range(len(PAIRS))]
    gaps = np.arange(columns + 1, dtype=np.int16) * np.int16(_UNIT * LOSS_OF_GAP)
    steps = np.full((rows + 1, count, columns + 1), _TEACHER_GAP, np.int8)
    steps[0, :, 0] = _STOP
    losses = [np.tile(gaps, (count, 1))]
    for row in range(1, rows + 1):
        best = losses[-1] + np.int16(_UNIT * LOSS_OF_GAP + _STUDENT_GAP)
        for (down, right, _), cost in zip(PAIRS, costs, strict=True):
            if down <= row and right <= columns:
                target = best[:, right:]
                np.minimum(target, losses[-down][:, :-right] + cost[row - down], out=target)
        loss = best & np.int16(-_UNIT)
        with_gaps = np.minimum.accumulate(loss - gaps, axis=1) + gaps
        np.copyto(steps[row], best & np.int16(_UNIT - 1), where=with_gaps == loss, casting="unsafe")
        losses = [*losses[1 - LONGEST_RUN :], with_gaps]
    return steps


def _costs(step: int, student: Sequence[Numbers], teacher: Sequence[Numbers]) -> NDArray[np.int16]:
    """[rows - down + 1, windows, columns - right + 1] what a step from each cell costs: _FAR where it is none."""
    down, right, loss = PAIRS[step]
    students = student[down - 1][:, : student[0].shape[1] - down + 1].T[:, :, None]
    teachers = teacher[right - 1][None, :, : teacher[0].shape[1] - right + 1]
    return np.where(students == teachers, np.int16(_UNIT * loss + step), _FAR)


def _trace(steps: NDArray[np.int8], windows: Indices) -> Indices:
    """The chunks [c, 4] on the way back from the end of each window."""
    _, count, columns = steps.shape
    back: Indices = _STEPS[:, 0] * (count * columns) + _STEPS[:, 1]
    ends = windows[:, 1::2] - windows[:, ::2]
    cell = cast("Indices", (ends[:, 0] * count + np.arange(count)) * columns + ends[:, 1])
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
    window_row, column = np.divmod(np.concatenate([np.zeros(0, np.int64), *cells])[pairs], columns)
    row, window = np.divmod(window_row, count)
    down, right = _STEPS[step[pairs]].T
    student, teacher = windows[window, 0] + row, windows[window, 2] + column
    return np.stack([student - down, student, teacher - right, teacher], axis=1)
