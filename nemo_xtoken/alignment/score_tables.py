"""Best paths through tables of the paper's scores, many small tables at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, Numbers, TokenStrings

Indices = NDArray[np.int64]
Chunk = tuple[int, int, int, int]

# What a step gains over leaving out its tokens, in units of 1.5: 4 for a pair, 2 k + 1 for one token and a run of k.
# The pair of unequal tokens gains nothing: it is two tokens left out.
_LENGTHS = np.arange(1, LONGEST_RUN + 1)
GAINS = 2 * _LENGTHS + 1 + (_LENGTHS == 1)
"""[LONGEST_RUN] gain of one token with a run of each length."""

# A gain and the step that leads to it are one number, _UNIT * gain + step: more gain wins, then the later step.
_UNIT = 16
_GAIN = np.int16(-_UNIT)
_STEPS = (
    (0, 0),
    *((1, k) for k in range(1, LONGEST_RUN + 1)),
    *((k, 1) for k in range(2, LONGEST_RUN + 1)),
    (1, 0),
    (0, 1),
)
"""Student and teacher tokens of each step: none at the end, equal strings, a token of one side left out."""

_STUDENT_GAP, _TEACHER_GAP = len(_STEPS) - 2, len(_STEPS) - 1
_ACROSS = np.array([_STUDENT_GAP, *(_UNIT * GAINS + _LENGTHS)], np.int16)
_DOWN = np.array(_UNIT * GAINS[1:] + LONGEST_RUN + _LENGTHS[:-1], np.int16)

LONGEST_WINDOW = 256
"""Tokens of both sides together; so few that every gain in a window is an int16."""

_CELLS = 1 << 17
"""Cells of the tables that are held at a time, those of the longest window at least; each takes some 30 bytes."""

_FEW_CELLS = 1 << 13
"""Cells of a group that is not divided, as the rows of two tables take longer than its cells outside of windows."""


def better_chunks(windows: Indices, gains: Indices, strings: TokenStrings) -> tuple[Flags, list[Chunk]]:
    """The windows [w] through which a path gains more than is known of each, and the chunks of the best paths through
    these: student start, student end, teacher start, teacher end.

    windows  [w, 4] columns as those of chunks; at most LONGEST_WINDOW tokens
    gains    [w] in the units of GAINS
    Of equally good paths one is taken that has more tokens in chunks at its end.
    """
    better = np.zeros(len(windows), np.bool_)
    found: list[Chunk] = []
    for places in _groups(windows):
        group = windows[places]
        table, best = _fill(strings, group)
        chosen = (table[0, 0] > _UNIT * gains[places]).nonzero()[0]
        if len(chosen):
            better[places[chosen]] = True
            steps = _steps(table[:, :, chosen], best[:, :, chosen])
            for begins, of_window in zip(group[chosen, ::2].tolist(), steps, strict=True):
                found += _trace(of_window, *begins)
    return better, found


def _groups(windows: Indices) -> Iterator[Indices]:
    """The places of windows in the order of their size, in groups whose tables fit into _CELLS; of large groups at most
    half of the cells are outside of a window."""
    largest: Indices = np.maximum(windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2])
    if len(windows) * int(largest.max()) ** 2 <= _FEW_CELLS:
        yield np.arange(len(windows))
        return
    order = largest.argsort(kind="stable")
    cells, begin = largest[order] ** 2, 0
    while begin < len(order):
        following: Indices = cells[begin : begin + _CELLS // int(cells[begin])]
        in_one_table: Indices = following * np.arange(1, len(following) + 1)
        most = np.maximum(np.minimum(2 * following.cumsum(), _CELLS), _FEW_CELLS)
        too_many = (in_one_table > most).nonzero()[0]
        count = int(too_many[0]) if len(too_many) else len(following)
        yield order[begin : begin + count]
        begin += count


def _fill(strings: TokenStrings, windows: Indices) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """[rows + 1, columns + 1, windows] the most that a path from each cell to the window's end gains, and
    [rows, columns, windows] the most of those that don't begin by leaving out the teacher's token, with the first step.
    Rows are student tokens.
    """
    first, last = windows[:, ::2].T, windows[:, 1::2].T
    rows, columns = (last - first).max(axis=1).tolist()
    runs = strings.runs(first, max(rows, columns), (first, last))
    across, down = _gains(runs[:, :rows, 0], runs[:, :columns, 1])
    table = np.zeros((rows + LONGEST_RUN, columns + LONGEST_RUN, len(windows)), np.int16)
    by_row, by_column, by_window = table.strides
    shape = columns, len(windows)
    after_row = np.ndarray(
        (rows, len(across), *shape), np.int16, table, by_row, (by_row, by_column, by_column, by_window)
    )
    after_column = np.ndarray(
        (rows, len(down), *shape), np.int16, table, 2 * by_row + by_column, (by_row, by_row, by_column, by_window)
    )
    best = np.empty((rows, *shape), np.int16)
    found = np.empty((len(across) + len(down), *shape), np.int16)
    found_across, found_down = found[: len(across)], found[len(across) :]
    for row in range(rows - 1, -1, -1):
        np.add(after_row[row], across[:, row], out=found_across)
        np.add(after_column[row], down[:, row], out=found_down)
        np.maximum.reduce(found, axis=0, out=best[row])
        np.maximum.accumulate(best[row, ::-1] & _GAIN, axis=0, out=table[row, :columns][::-1])
    return table[: rows + 1, : columns + 1], best


def _gains(student: Numbers, teacher: Numbers) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """What the steps from each cell gain, 0 where there is none.

    [1 + LONGEST_RUN, rows, columns, windows] of one student token, left out first, then with runs of the teacher's
    tokens; [LONGEST_RUN - 1, ...] of runs of student tokens
    """
    across = np.empty((1 + LONGEST_RUN, len(student[0]), *teacher[0].shape), np.int16)
    across[0] = _ACROSS[0]
    across[1:] = student[:1, :, None] == teacher[:, None]
    across[1:] *= _ACROSS[1:, None, None, None]
    down = (student[1:, :, None] == teacher[:1, None]).astype(np.int16)
    down *= _DOWN[:, None, None, None]
    return across, down


def _steps(table: NDArray[np.int16], best: NDArray[np.int16]) -> NDArray[np.uint8]:
    """[windows, rows + 1, columns + 1] the first step of the best path from each cell to the end."""
    steps = np.zeros(table.shape, np.uint8)
    here = table[:-1, :-1]
    np.copyto(steps[:-1, :-1], np.where(best & _GAIN == here, best & ~_GAIN, _TEACHER_GAP), casting="unsafe")
    steps[:-1, :-1][here == 0] = 0
    return np.ascontiguousarray(steps.transpose(2, 0, 1))


def _trace(steps: NDArray[np.uint8], student: int, teacher: int) -> Iterator[Chunk]:
    """The chunks on the path from the first cell of a table, where a student's and a teacher's token are."""
    columns, cells, cell = steps.shape[1], steps.tobytes(), 0
    while step := cells[cell]:
        down, right = _STEPS[step]
        if step < _STUDENT_GAP:
            yield student, student + down, teacher, teacher + right
        student, teacher, cell = student + down, teacher + right, cell + down * columns + right
