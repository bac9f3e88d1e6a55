"""The paper's alignment by token strings (dynamic programming), for parity with it only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.align import align
from nemo_xtoken.alignment.score_tables import LONGEST_WINDOW, LOSS_OF_GAP, LOSS_OF_RUN, better_chunks
from nemo_xtoken.alignment.token_strings import (
    LONGEST_RUN,
    Flags,
    TokenStrings,
    may_equal_run,
    may_have_equal,
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

    Windowed: the table is never filled as a whole. Tokens of the exact alignment that no path near it can take better
    are closed: equal pairs, a token that stands for a run where nothing else for it is near, and tokens that nothing
    near is equal to. Tables are filled for windows of at most LONGEST_WINDOW tokens around the others, and decide where
    a path through one is better than the exact alignment. So the score is the best of all paths that keep to the exact
    alignment outside of the windows and where a longer one is cut; it is the whole table's best where both sides
    together have at most LONGEST_WINDOW tokens. Time and memory are linear in tokens.
    Raises AlignmentError where the two cover texts of different length.
    """
    nodes = _nodes(align(student, teacher), len(student), len(teacher))
    sides = token_strings(student, student_tokenizer, 1), token_strings(teacher, teacher_tokenizer, 2)
    numbers = np.diff(nodes)
    longer = (numbers[0] * numbers[1] != 1).nonzero()[0]
    paired = _paired(nodes, numbers, longer, *sides)
    runs, others = longer[paired[longer]], (~paired).nonzero()[0]
    windows = _windows(nodes, _opened(nodes, numbers, runs, others, *sides), student.ends, teacher.ends)
    if not len(windows):
        return _chunks(_of_paired(nodes, paired))
    places, losses = _known(nodes, paired, windows)
    better, found = better_chunks(windows, losses, *sides)
    kept: Indices = _of_paired(nodes, paired & ~_inside(places[:, better], len(paired)))
    if not len(found):
        return _chunks(kept)
    columns: Indices = np.concatenate([kept, found.T], axis=1)
    return _chunks(columns[:, columns[0].argsort(kind="stable")])


def _of_paired(nodes: Indices, paired: Flags) -> Indices:
    """[4, c] student start, student end, teacher start, teacher end of the stretches that are chunks."""
    places = paired.nonzero()[0]
    return np.stack([nodes[side].take(ends) for side in (0, 1) for ends in (places, places + 1)])


def _chunks(columns: Indices) -> Chunks:
    student_start, student_end, teacher_start, teacher_end = columns
    return Chunks(student_start, student_end, teacher_start, teacher_end, np.ones(len(student_end), np.bool_))


def _known(nodes: Indices, paired: Flags, windows: Indices) -> tuple[Indices, Indices]:
    """[2, w] the first stretch in each window and the one after its last, and [w] what the exact alignment loses there;
    more than any path where a window is cut inside of a stretch."""
    steps: Indices = nodes.sum(axis=0)
    numbers: Indices = np.diff(steps)
    losses: Indices = np.where(paired, LOSS_OF_RUN * (numbers > 2), LOSS_OF_GAP * numbers)
    lost: Indices = np.append(0, losses.cumsum())
    starts: Indices = windows[:, ::2].sum(axis=1)
    ends: Indices = windows[:, 1::2].sum(axis=1)
    first: Indices = np.searchsorted(steps, starts)
    last: Indices = np.searchsorted(steps, ends, side="right") - 1
    at_nodes = (steps[first] == starts) & (steps[last] == ends)
    return np.stack([first, last]), np.where(at_nodes, lost[last] - lost[first], 2 * LONGEST_WINDOW * LOSS_OF_GAP)


def _inside(edges: Indices, num_stretches: int) -> Flags:
    """[g] the stretches from one of the first edges on and before its second. edges: [2, w]"""
    changes = np.zeros(num_stretches + 1, np.int64)
    np.add.at(changes, edges[0], 1)
    np.add.at(changes, edges[1], -1)
    return changes.cumsum()[:-1] > 0


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
    nodes = np.stack(ends)
    gaps = (np.stack(starts) != nodes).any(axis=0).nonzero()[0]
    if not len(gaps):
        return nodes
    return np.stack([np.insert(end, gaps + 1, start[gaps]) for start, end in zip(starts, ends, strict=True)])


def _stretches(nodes: Indices) -> Indices:
    """[g, 4] student start, student end, teacher start, teacher end between neighbouring nodes."""
    return np.stack([nodes[0, :-1], nodes[0, 1:], nodes[1, :-1], nodes[1, 1:]], axis=1)


def _paired(nodes: Indices, numbers: Indices, longer: Indices, student: TokenStrings, teacher: TokenStrings) -> Flags:
    """[g] stretches of one token, or one and up to LONGEST_RUN, whose strings are equal.

    numbers [2, g] tokens of each stretch; longer: the stretches that are not of one token on both sides
    """
    starts = nodes[:, :-1]
    paired: Flags = student.runs(starts[0], 1) == teacher.runs(starts[1], 1)
    paired[longer] = False
    of_size = (numbers[:, longer].min(axis=0) == 1) & (numbers[:, longer].max(axis=0) <= LONGEST_RUN)
    places = longer[of_size]
    if len(places):
        runs = (side.runs(starts[i, places], numbers[i, places]) for i, side in enumerate((student, teacher)))
        paired[places] = np.equal(*runs)
    return paired


def _opened(
    nodes: Indices, numbers: Indices, runs: Indices, others: Indices, student: TokenStrings, teacher: TokenStrings
) -> Indices:
    """[o] the stretch of each token that a path near the exact alignment may take better, ascending.

    runs: the stretches of one token and a run that is equal to it; others: those that are not paired

    An equal pair loses nothing. A run loses 1, as every path does at its single token if no equal of that is near on
    the other side, nor of a run with it. The tokens of any other stretch lose 2 each, as on every path if no equal of
    one is near, nor of a run with it, nor a run that is its equal.
    """
    # What is near is counted from where a stretch begins, so that a long one counts as several open tokens.
    opened = [np.repeat(others[numbers[:, others].max(axis=0, initial=0) > NEAR], 2)]
    for side, (own, other) in enumerate(((student, teacher), (teacher, student))):
        singles = runs[numbers[side, runs] == 1]
        counts = numbers[side, others]
        stretches = np.concatenate((singles, np.repeat(others, counts)))
        if len(stretches):
            tokens = np.concatenate((nodes[side, singles], _ranges(nodes[side, others], counts)))
            around = _around(nodes[1 - side], stretches, len(student) + len(teacher))
            is_open = may_have_equal(tokens, own, around, other)
            of_others = slice(len(singles), None)
            is_open[of_others] |= may_equal_run(tokens[of_others], own, around[:, of_others], other)
            opened.append(stretches[is_open])
    return np.sort(np.concatenate(opened))


def _around(nodes: Indices, stretches: Indices, num_tokens: int) -> Indices:
    """[m, k] the places on a side, with these nodes, where a path near the exact alignment may take the tokens of each
    stretch: in a short text all of it, else NEAR to its beginning and not outside of its window. -1 for none."""
    if num_tokens <= LONGEST_WINDOW:
        return np.repeat(np.arange(int(nodes[-1]))[:, None], len(stretches), axis=1)
    first = nodes[np.maximum(stretches - PADDING, 0)]
    last = nodes[np.minimum(stretches + PADDING + 1, len(nodes) - 1)]
    places = nodes[stretches] + np.arange(-NEAR, NEAR)[:, None]
    return np.where((places >= first) & (places < last), places, -1)


def _ranges(starts: Indices, counts: Indices) -> Indices:
    """So many numbers from each start on, one range after the other."""
    repeated: Indices = np.repeat(starts - counts.cumsum() + counts, counts)
    return repeated + np.arange(len(repeated))


def _windows(nodes: Indices, opened: Indices, student_ends: Indices, teacher_ends: Indices) -> Indices:
    """[w, 4] windows around the stretches with open tokens, given the stretch of each.

    One open token alone betters nothing: before the first and after the last token that is taken otherwise, both sides
    are as far as in the exact alignment. A path that takes a closed token otherwise has strings of different length
    equal there, and one that takes a single open token otherwise is not as far on both sides after it.
    """
    num_stretches = nodes.shape[1] - 1
    if len(opened) < 2:
        return np.zeros((0, 4), np.int64)
    if nodes[:, -1].sum() <= LONGEST_WINDOW:
        return _stretches(nodes[:, [0, -1]])
    around = [np.maximum(opened - PADDING, 0), np.minimum(opened + PADDING + 1, num_stretches)]
    inside = np.append(_inside(np.stack(around), num_stretches), False)
    edges = np.diff(inside, prepend=False).nonzero()[0].reshape(-1, 2)
    edges = edges[np.diff(np.searchsorted(opened, edges))[:, 0] > 1]
    firsts, lasts = nodes[:, edges[:, 0]], nodes[:, edges[:, 1]]
    fits = (lasts - firsts).sum(axis=0) <= LONGEST_WINDOW
    windows = [np.stack([firsts[0], lasts[0], firsts[1], lasts[1]], axis=1)[fits]]
    for first, last in edges[~fits].tolist():
        cuts = np.array(list(_cuts(nodes[:, first : last + 1].T, student_ends, teacher_ends)))
        windows.append(_stretches(cuts.T))
    return np.concatenate(windows)


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
