"""The paper's alignment by token strings (dynamic programming), for parity with it only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.align import align
from nemo_xtoken.alignment.near_equals import count_open, count_open_everywhere
from nemo_xtoken.alignment.score_tables import GAINS, LONGEST_WINDOW, Chunk, better_chunks
from nemo_xtoken.alignment.token_strings import LONGEST_RUN, Flags, TokenStrings, token_strings
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Chunks, Encoding

Indices = NDArray[np.int64]

PADDING = 2
"""Stretches that a window has before its first and after its last open token."""

_PADDED = np.array([[-PADDING], [PADDING + 1]])
"""From the first and the last open token's stretch to the window's first and the one after its last."""

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
    nodes = _nodes(student, teacher)
    strings = token_strings((student, teacher), (student_tokenizer, teacher_tokenizer))
    sizes: Indices = nodes[:, 1:] - nodes[:, :-1]
    paired = _paired(nodes, sizes, strings)
    opened = _opened(nodes, sizes, paired, strings)
    windows, edges, whole = _windows(nodes, opened, student.ends, teacher.ends)
    if not len(windows):
        return _chunks(nodes, paired)
    better, found = better_chunks(windows, _gains(sizes, paired, edges, whole), strings)
    for first, last in edges[:, better].T.tolist():
        paired[first:last] = False
    return _chunks(nodes, paired, found)


def _chunks(nodes: Indices, paired: Flags, found: Sequence[Chunk] = ()) -> Chunks:
    """The stretches that are chunks, and the chunks that were found between these, in the text's order."""
    places = paired.nonzero()[0]
    if not found:
        return _chunks_of(_at(nodes, places))
    between = np.array(sorted(found), np.int64).T
    stretches = cast("Indices", np.searchsorted(nodes[0], between[0], side="right"))
    own = cast("Indices", np.searchsorted(places, stretches))
    columns = _at(nodes, np.insert(places, own, 0))
    columns[:, own + np.arange(len(own))] = between
    return _chunks_of(columns)


def _at(nodes: Indices, places: Indices) -> Indices:
    """[4, p] the columns of chunks that are the stretches at places."""
    columns: Indices = np.empty((4, len(places)), np.int64)
    for column, of_side in zip(columns, (nodes[0], nodes[0, 1:], nodes[1], nodes[1, 1:]), strict=True):
        of_side.take(places, out=column, mode="clip")
    return columns


def _chunks_of(columns: Indices) -> Chunks:
    student_start, student_end, teacher_start, teacher_end = columns
    return Chunks(student_start, student_end, teacher_start, teacher_end, np.ones(len(student_start), np.bool_))


def _gains(sizes: Indices, paired: Flags, edges: Indices, whole: Flags) -> Indices:
    """[w] what the exact alignment gains in each window; less than any path where a window is not `whole`: where it is
    cut inside of a stretch. edges [2, w]: the first stretch of each window and the one after its last."""
    counts: Indices = edges[1] - edges[0]
    places = np.arange(int(counts.max()))[:, None]
    stretches: Indices = np.minimum(edges[0] + places, sizes.shape[1] - 1)
    counted: Flags = paired.take(stretches) & (places < counts)
    largest: Indices = np.maximum(*sizes.take(stretches, axis=1))
    gains: Indices = np.add.reduce(GAINS.take(largest - 1, mode="clip") * counted, axis=0)
    return np.where(whole, gains, -1)


def score(chunks: Chunks, num_student: int, num_teacher: int) -> float:
    """The paper's score of an alignment whose chunks are pairs and runs. num_student, num_teacher: tokens."""
    student, teacher = chunks.student_end - chunks.student_start, chunks.teacher_end - chunks.teacher_start
    longer: Indices = np.maximum(student, teacher)
    gaps = num_student + num_teacher - int(student.sum() + teacher.sum())
    return float(np.where(longer == 1, PAIR_SCORE, RUN_SCORE * longer).sum()) + GAP_SCORE * gaps


def _nodes(student: Encoding, teacher: Encoding) -> Indices:
    """[2, g + 1] the student's and the teacher's token with which each chunk and each gap begins, and their ends."""
    chunks = align(student, teacher)
    starts = np.empty((2, len(chunks) + 1), np.int64)
    starts[:, -1] = len(student), len(teacher)
    starts[0, :-1], starts[1, :-1] = chunks.student_start, chunks.teacher_start
    if len(chunks) and student.roles is None and teacher.roles is None:
        return starts
    ends = np.zeros_like(starts)
    ends[0, 1:], ends[1, 1:] = chunks.student_end, chunks.teacher_end
    gaps = (starts != ends).any(axis=0).nonzero()[0]
    return np.stack([np.insert(end, gaps + 1, start[gaps]) for start, end in zip(starts, ends, strict=True)])


def _paired(nodes: Indices, sizes: Indices, strings: TokenStrings) -> Flags:
    """[g] stretches of one token, or one and up to LONGEST_RUN, whose strings are equal. sizes [2, g]: their tokens."""
    paired: Flags = strings.at(nodes[0, :-1]) == strings.at(nodes[1, :-1] + strings.begins[1])
    paired &= sizes[0] * sizes[1] == 1
    others = (~paired).nonzero()[0]
    tokens = sizes.take(others, axis=1)
    largest: Indices = np.maximum(*tokens)
    can_be: Flags = (np.minimum(*tokens) == 1) & (largest <= LONGEST_RUN)
    paired[others] = can_be & strings.is_run(nodes.take(others + 1, axis=1), tokens)
    return paired


def _is_short(nodes: Indices) -> bool:
    """Whether the whole text is one window."""
    return int(nodes[0, -1]) + int(nodes[1, -1]) <= LONGEST_WINDOW


def _opened(nodes: Indices, sizes: Indices, paired: Flags, strings: TokenStrings) -> Indices:
    """[o] the stretch of each open token, ascending.

    An equal pair loses nothing. A run loses 1, as every path does at its single token if no equal of that is near on
    the other side, nor of a run with it. The tokens of any other stretch lose 2 each, as on every path if no equal of
    one is near, nor of a run with it, nor a run that is its equal.
    """
    others = (~paired).nonzero()[0]
    if not _is_short(nodes):
        return np.repeat(others, count_open(nodes, sizes, others, strings))
    runs = (paired & (sizes[0] * sizes[1] > 1)).nonzero()[0]
    counts = (
        count_open_everywhere(nodes, sizes, others, strings),
        count_open_everywhere(nodes, sizes, runs, strings, singles=True),
    )
    return np.sort(np.repeat(np.concatenate([others, runs]), np.concatenate(counts)))


def _windows(
    nodes: Indices, opened: Indices, student_ends: Indices, teacher_ends: Indices
) -> tuple[Indices, Indices, Flags]:
    """Windows around the stretches with open tokens, given the stretch of each: [w, 4]; [2, w] the first stretch that
    is whole in each and the one after the last; [w] whether all in it are whole.

    One open token alone betters nothing: before the first and after the last token that is taken otherwise, both sides
    are as far as in the exact alignment. A path that takes a closed token otherwise has strings of different length
    equal there, and one that takes a single open token otherwise is not as far on both sides after it.
    """
    edges = _edges(opened, nodes.shape[1] - 1, is_short=_is_short(nodes))
    windows = nodes.take(edges, axis=1).transpose(2, 0, 1).reshape(-1, 4)
    whole = np.ones(len(windows), np.bool_)
    fits = (windows[:, 1::2] - windows[:, ::2]).sum(axis=1) <= LONGEST_WINDOW
    if fits.all():
        return windows, edges, whole
    parts = [(windows[fits], edges[:, fits], whole[fits])]
    parts += [_cut(first, last, nodes, student_ends, teacher_ends) for first, last in edges[:, ~fits].T.tolist()]
    windows_of, edges_of, whole_of = zip(*parts, strict=True)
    return np.concatenate(windows_of), np.concatenate(edges_of, axis=1), np.concatenate(whole_of)


def _edges(opened: Indices, num_stretches: int, *, is_short: bool) -> Indices:
    """[2, w] the first stretch of each window and the one after its last."""
    if len(opened) < 2:
        return np.zeros((2, 0), np.int64)
    if is_short:
        return np.array([[0], [num_stretches]])
    is_near = np.zeros(len(opened) + 1, np.bool_)
    np.less_equal(opened[1:] - opened[:-1], 2 * PADDING + 1, out=is_near[1:-1])
    first_and_last: Indices = (is_near[1:] != is_near[:-1]).nonzero()[0]
    edges: Indices = opened.take(first_and_last.reshape(-1, 2).T) + _PADDED
    return np.minimum(np.maximum(edges, 0, out=edges), num_stretches, out=edges)


def _cut(
    first: int, last: int, nodes: Indices, student_ends: Indices, teacher_ends: Indices
) -> tuple[Indices, Indices, Flags]:
    """`_windows` of stretches that are too many for one."""
    nodes = nodes[:, first : last + 1]
    cuts = np.array(list(_cuts(nodes.T, student_ends, teacher_ends))).T
    windows = np.stack([cuts[0, :-1], cuts[0, 1:], cuts[1, :-1], cuts[1, 1:]], axis=1)
    steps, cuts_steps = nodes.sum(axis=0), cuts.sum(axis=0)
    begins = cast("Indices", np.searchsorted(steps, cuts_steps[:-1]))
    ends = cast("Indices", np.searchsorted(steps, cuts_steps[1:], side="right")) - 1
    whole = (steps[begins] == cuts_steps[:-1]) & (steps[ends] == cuts_steps[1:])
    return windows, np.stack([begins, ends]) + first, whole


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
