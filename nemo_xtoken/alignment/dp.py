"""The paper's alignment by token strings (dynamic programming), for parity with it only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.align import align
from nemo_xtoken.alignment.near_equals import LONGEST_TESTED, PADDING, count_open
from nemo_xtoken.alignment.score_tables import LONGEST_WINDOW, LOSS_OF_GAP, LOSS_OF_RUN, better_chunks
from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, TokenStrings, token_strings
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Chunks, Encoding

Indices = NDArray[np.int64]

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
    are closed: equal pairs, tokens that stand for a run or are part of one, and tokens that nothing near is equal to.
    Tables are filled for windows of at most LONGEST_WINDOW tokens around the others, and decide where a path through
    one is better than the exact alignment. So the score is the best of all paths that keep to the exact alignment
    outside of the windows and where a longer one is cut. Where both sides together have at most LONGEST_WINDOW tokens
    it is the whole table's best: there everything is near, and a run's single token is open if anything is equal to it.
    Time and memory are linear in tokens.
    Raises AlignmentError where the two cover texts of different length.
    """
    nodes = _nodes(align(student, teacher), len(student), len(teacher))
    strings = token_strings((student, teacher), (student_tokenizer, teacher_tokenizer))
    sizes = nodes[:, 1:] - nodes[:, :-1]
    longer = (sizes[0] * sizes[1] != 1).nonzero()[0]
    paired = _paired(nodes, sizes, longer, strings)
    opened = _opened(nodes, sizes, longer, paired, strings)
    windows = _windows(nodes, opened, student.ends, teacher.ends)
    if not len(windows):
        return _chunks(_of_paired(nodes, paired))
    places, losses = _known(nodes, paired, windows)
    better, found = better_chunks(windows, losses, strings)
    kept: Indices = _of_paired(nodes, paired & ~_inside(places[:, better], len(paired)))
    if not len(found):
        return _chunks(kept)
    return _chunks(_merged(kept, found[found[:, 0].argsort()].T))


def _of_paired(nodes: Indices, paired: Flags) -> Indices:
    """[4, c] student start, student end, teacher start, teacher end of the stretches that are chunks."""
    places = paired.nonzero()[0]
    columns = np.empty((4, len(places)), np.int64)
    for column, of_side in zip(columns, (nodes[0], nodes[0, 1:], nodes[1], nodes[1, 1:]), strict=True):
        of_side.take(places, out=column, mode="clip")
    return columns


def _merged(kept: Indices, found: Indices) -> Indices:
    """[4, c] columns of both, each in the text's order, in the text's order."""
    places = cast("Indices", np.searchsorted(kept[0], found[0]))
    firsts: Indices = np.diff(places, prepend=-1).nonzero()[0]
    kept_parts = np.split(kept, places[firsts], axis=1)
    found_parts = np.split(found, firsts[1:], axis=1)
    both = [part for pair in zip(kept_parts, [*found_parts, found[:, :0]], strict=True) for part in pair]
    return np.concatenate(both, axis=1)


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
    starts = np.empty((2, len(chunks) + 1), np.int64)
    starts[:, -1] = num_student, num_teacher
    starts[0, :-1], starts[1, :-1] = chunks.student_start, chunks.teacher_start
    ends = np.zeros_like(starts)
    ends[0, 1:], ends[1, 1:] = chunks.student_end, chunks.teacher_end
    if np.array_equal(starts, ends):
        return starts
    gaps = (starts != ends).any(axis=0).nonzero()[0]
    return np.stack([np.insert(end, gaps + 1, start[gaps]) for start, end in zip(starts, ends, strict=True)])


def _stretches(nodes: Indices) -> Indices:
    """[g, 4] student start, student end, teacher start, teacher end between neighbouring nodes."""
    return np.stack([nodes[0, :-1], nodes[0, 1:], nodes[1, :-1], nodes[1, 1:]], axis=1)


def _paired(nodes: Indices, sizes: Indices, longer: Indices, strings: TokenStrings) -> Flags:
    """[g] stretches of one token, or one and up to LONGEST_RUN, whose strings are equal.

    sizes [2, g] tokens of each stretch; longer: the stretches that are not of one token on both sides
    """
    places = nodes[:, :-1] + strings.begins[:, None]
    numbers = strings.numbers.take(places)
    paired: Flags = numbers[0] == numbers[1]
    paired[longer] = False
    own = sizes[:, longer]
    fits = (own[0] == 1) & (own[1] <= LONGEST_RUN) | (own[1] == 1) & (own[0] <= LONGEST_RUN)
    fits &= (own > 0).all(axis=0)
    runs = longer[fits]
    if len(runs):
        paired[runs] = np.equal(*strings.whole(places[:, runs], sizes[:, runs]))
    return paired


def _opened(nodes: Indices, sizes: Indices, longer: Indices, paired: Flags, strings: TokenStrings) -> Indices:
    """[o] the stretch of each open token, ascending.

    An equal pair loses nothing. A run loses 1, as every path does at its single token if no equal of that is near on
    the other side, nor of a run with it. The tokens of any other stretch lose 2 each, as on every path if no equal of
    one is near, nor of a run with it, nor a run that is its equal.
    """
    others = (~paired).nonzero()[0]
    is_long = (sizes[:, others] > LONGEST_TESTED).any(axis=0)
    tested = others[~is_long]
    is_short = bool(nodes[:, -1].sum() <= LONGEST_WINDOW)
    counts = count_open(nodes, sizes, tested, strings, everywhere=is_short)
    stretches, numbers = [tested, others[is_long]], [counts, np.full(int(is_long.sum()), 2)]
    if is_short:
        runs = longer[paired[longer]]
        stretches.append(runs)
        numbers.append(count_open(nodes, sizes, runs, strings, everywhere=True, singles=True))
    return np.sort(np.repeat(np.concatenate(stretches), np.concatenate(numbers)))


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
