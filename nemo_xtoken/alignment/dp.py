"""The paper's alignment by token strings (dynamic programming), for parity with it only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.align import align
from nemo_xtoken.alignment.score_tables import LONGEST_WINDOW, PAIRS, best_chunks
from nemo_xtoken.alignment.token_strings import (
    LONGEST_RUN,
    Flags,
    TokenStrings,
    equals_run_near,
    has_equal_near,
    token_strings,
)
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Chunks, Encoding

Indices = NDArray[np.int64]

PADDING = 2
"""Stretches that a window has around those that are open."""

NEAR = 6
"""Of a long text, only the equals of so many tokens before and after it can make a stretch open."""

PAIR_SCORE, RUN_SCORE, GAP_SCORE = 3.0, 1.5, -1.5


def align_dp(
    student: Encoding, teacher: Encoding, student_tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
) -> Chunks:
    """The chunks of the paper's aligner: pairs of equal token strings, and one token for 2 to 4 of the other side.

    D(i, j) = max{ D(i-1, j-1) + 3 if s_i = t_j else - 3;  D(i-1, j-k) + 1.5 k if s_i = t_{j-k+1..j};
                   D(i-k, j-1) + 1.5 k if s_{i-k+1..i} = t_j;  D(i-1, j) - 1.5;  D(i, j-1) - 1.5 },  2 <= k <= 4
    Strings are the tokens' bytes in their vocabularies, and the roles of special tokens. Tokens in gaps and in unequal
    pairs are in no chunk. Every chunk is `exact`.

    Windowed: the table is never filled as a whole. Stretches of the exact alignment that no path near it can better are
    taken from it: equal pairs, a token that stands for a run where nothing else for it is near, and tokens that nothing
    near is equal to. Tables are filled for windows around the other stretches, of at most LONGEST_WINDOW tokens. So the
    score is the best of all paths that keep to the exact alignment outside of the windows and where a longer one is
    cut; it is the whole table's best where both sides together have at most LONGEST_WINDOW tokens. Time and memory are
    linear in tokens.
    Raises AlignmentError where the two cover texts of different length.
    """
    nodes = _nodes(align(student, teacher), len(student), len(teacher))
    sides = token_strings(student, student_tokenizer, 1), token_strings(teacher, teacher_tokenizer, 2)
    paired = _paired(nodes, *sides)
    settled = _settled(nodes, paired, *sides)
    windows, outside = _windows(nodes, settled, student.ends, teacher.ends)
    kept = (paired & outside).nonzero()[0]
    columns = [nodes[0, kept], nodes[0, kept + 1], nodes[1, kept], nodes[1, kept + 1]]
    if len(windows):
        columns = [np.concatenate(pair) for pair in zip(columns, best_chunks(windows, *sides).T, strict=True)]
        order = columns[0].argsort(kind="stable")
        columns = [column[order] for column in columns]
    return Chunks(*columns, exact=np.ones(len(columns[0]), np.bool_))


def score(chunks: Chunks, num_student: int, num_teacher: int) -> float:
    """The paper's score of an alignment whose chunks are pairs and runs. num_student, num_teacher: tokens."""
    student, teacher = chunks.student_end - chunks.student_start, chunks.teacher_end - chunks.teacher_start
    longer: Indices = np.maximum(student, teacher)
    gaps = num_student + num_teacher - int(student.sum() + teacher.sum())
    return float(np.where(longer == 1, PAIR_SCORE, RUN_SCORE * longer).sum()) + GAP_SCORE * gaps


def _nodes(chunks: Chunks, num_student: int, num_teacher: int) -> Indices:
    """[2, g + 1] the student's and the teacher's token with which each chunk and each gap begins, and their ends."""
    ends = [np.append(0, end) for end in (chunks.student_end, chunks.teacher_end)]
    starts = [np.append(chunks.student_start, num_student), np.append(chunks.teacher_start, num_teacher)]
    gaps = ((starts[0] > ends[0]) | (starts[1] > ends[1])).nonzero()[0]
    if not len(gaps):
        return np.stack(ends)
    return np.stack([np.insert(end, gaps + 1, start[gaps]) for start, end in zip(starts, ends, strict=True)])


def _stretches(nodes: Indices) -> Indices:
    """[g, 4] student start, student end, teacher start, teacher end between neighbouring nodes."""
    return np.stack([nodes[0, :-1], nodes[0, 1:], nodes[1, :-1], nodes[1, 1:]], axis=1)


def _paired(nodes: Indices, student: TokenStrings, teacher: TokenStrings) -> Flags:
    """[g] stretches of one token, or one and up to LONGEST_RUN, whose strings are equal."""
    numbers = nodes[:, 1:] - nodes[:, :-1]
    paired = np.zeros(numbers.shape[1], np.bool_)
    rest = np.arange(len(paired))
    for num_student, num_teacher, _ in PAIRS:
        of_size = (numbers[0, rest] == num_student) & (numbers[1, rest] == num_teacher)
        places, rest = rest[of_size], rest[~of_size]
        if not len(places):
            continue
        student_runs = student.runs(nodes[0, places], num_student)
        paired[places] = student_runs == teacher.runs(nodes[1, places], num_teacher)
    return paired


def _settled(nodes: Indices, paired: Flags, student: TokenStrings, teacher: TokenStrings) -> Flags:
    """[g] stretches that no path near the exact alignment can better.

    An equal pair loses nothing. A run loses 1, as every path does at its single token if no equal of that is near on
    the other side, nor of a run with it. The tokens of any other stretch lose 2 each, as on every path if no equal of
    one is near, nor of a run with it, nor a run that is its equal.
    """
    numbers = nodes[:, 1:] - nodes[:, :-1]
    settled = np.ones(len(paired), np.bool_)
    whole = len(student) + len(teacher)
    near = whole if whole <= LONGEST_WINDOW else NEAR
    runs = (paired & (numbers.sum(axis=0) > 2)).nonzero()[0]
    others = (~paired).nonzero()[0]
    for side, (own, other) in enumerate(((student, teacher), (teacher, student))):
        singles = runs[numbers[side, runs] == 1]
        if len(singles):
            settled[singles] = ~has_equal_near(nodes[side, singles], own, nodes[1 - side, singles], other, near)
        tokens = _ranges(nodes[side, others], numbers[side, others])
        stretches = np.repeat(others, numbers[side, others])
        if len(tokens):
            where = tokens, own, nodes[1 - side, stretches], other, near
            settled[stretches[has_equal_near(*where) | equals_run_near(*where)]] = False
    # What is near is counted from where a stretch begins.
    return settled & (paired | (numbers.max(axis=0) <= LONGEST_RUN))


def _ranges(starts: Indices, counts: Indices) -> Indices:
    """So many numbers from each start on, one range after the other."""
    repeated: Indices = np.repeat(starts - counts.cumsum() + counts, counts)
    return repeated + np.arange(len(repeated))


def _windows(nodes: Indices, settled: Flags, student_ends: Indices, teacher_ends: Indices) -> tuple[Indices, Flags]:
    """[w, 4] windows around the stretches that are not settled, and the stretches that are in none."""
    num_stretches, open_places = len(settled), (~settled).nonzero()[0]
    if not len(open_places):
        return np.zeros((0, 4), np.int64), settled
    if nodes[:, -1].sum() <= LONGEST_WINDOW:
        return _stretches(nodes[:, [0, -1]]), np.zeros(num_stretches, np.bool_)
    changes = np.zeros(num_stretches + 1, np.int64)
    np.add.at(changes, np.maximum(open_places - PADDING, 0), 1)
    np.add.at(changes, np.minimum(open_places + PADDING + 1, num_stretches), -1)
    inside = changes.cumsum() > 0
    edges = np.diff(inside, prepend=False).nonzero()[0].reshape(-1, 2)
    firsts, lasts = nodes[:, edges[:, 0]], nodes[:, edges[:, 1]]
    fits = (lasts - firsts).sum(axis=0) <= LONGEST_WINDOW
    windows = [np.stack([firsts[0], lasts[0], firsts[1], lasts[1]], axis=1)[fits]]
    for first, last in edges[~fits].tolist():
        cuts = np.array(list(_cuts(nodes[:, first : last + 1].T, student_ends, teacher_ends)))
        windows.append(_stretches(cuts.T))
    return np.concatenate(windows), ~inside[:-1]


def _cuts(nodes: Indices, student_ends: Indices, teacher_ends: Indices) -> Iterator[Indices]:
    """Where a window [g + 1, 2] that is too long is cut: at nodes, and where these are too far from each other in the
    order in which the tokens of both sides end."""
    steps = nodes.sum(axis=1)
    here: Indices = nodes[0]
    yield here
    while (taken := int(np.add.reduce(here))) < steps[-1]:
        following = int(np.searchsorted(steps, taken + LONGEST_WINDOW, side="right")) - 1
        if steps[following] > taken:
            here = nodes[following]
        else:
            end = nodes[following + 1]
            ends = student_ends[here[0] : end[0]][:LONGEST_WINDOW], teacher_ends[here[1] : end[1]][:LONGEST_WINDOW]
            earliest = np.concatenate(ends).argsort(kind="stable")[:LONGEST_WINDOW]
            num_student = int((earliest < len(ends[0])).sum())
            here = here + np.array([num_student, LONGEST_WINDOW - num_student], np.int64)
        yield here
