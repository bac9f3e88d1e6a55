"""Which tokens of two encodings of one text cover the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment.specials import pair_specials
from nemo_xtoken.errors import AlignmentError
from nemo_xtoken.types import Chunks, Encoding

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Side:
    """The tokens of one side that can be in a chunk: its text tokens and its paired special tokens.

    ends     [n] int64, as if every paired special token covered a byte of its own at its place in the text
    special  [n] bool, paired special tokens. None: there are none
    index    [n] int64, each token's place in the encoding. None: the same
    exact    [n] bool. None: all
    """

    ends: Indices
    special: NDArray[np.bool_] | None = None
    index: Indices | None = None
    exact: NDArray[np.bool_] | None = None


def align(student: Encoding, teacher: Encoding) -> Chunks:
    """The finest chunks of student and teacher tokens that cover the same bytes, in text order.

    Two neighbouring chunks meet wherever a token ends on both sides. Special tokens with the same role at the same byte
    form chunks of their own; the others are gaps, as are padding tokens. A chunk is exact if all its spans are and it
    encloses no gap. A text token without bytes belongs to the chunk of the token that follows it, at the end to the
    last; where the other side has only special tokens, text is in no chunk. Time is linear in tokens and bytes.
    Raises AlignmentError where the two cover texts of different length.
    """
    student_size, teacher_size = _size(student), _size(teacher)
    if student_size != teacher_size:
        raise AlignmentError(
            f"expected two encodings of one text, got {student_size} bytes on the student's side and {teacher_size} on "
            "the teacher's; encode the same string with both tokenizers"
        )
    if student.roles is None and teacher.roles is None:
        return _chunks(_Side(student.ends, exact=student.exact), _Side(teacher.ends, exact=teacher.exact))
    student_paired, teacher_paired = pair_specials(student, teacher)
    return _chunks(_without_gaps(student, student_paired), _without_gaps(teacher, teacher_paired))


def _size(encoding: Encoding) -> int:
    return int(encoding.ends[-1]) if len(encoding) else 0


def _without_gaps(encoding: Encoding, paired: Indices) -> _Side:
    is_pair = np.zeros(len(encoding), np.bool_)
    is_pair[paired] = True
    keep = is_pair if encoding.roles is None else is_pair | (encoding.roles == 0)
    index = np.flatnonzero(keep) if encoding.roles is not None else np.arange(len(encoding))
    special = is_pair[index]
    exact = None if encoding.exact is None else encoding.exact[index]
    return _Side(encoding.ends[index] + np.cumsum(special), special, index, exact)


def _chunks(student: _Side, teacher: _Side) -> Chunks:
    student_last, teacher_last = _common_ends(student.ends, teacher.ends)
    student_start, student_end, student_exact = _runs(student, student_last)
    teacher_start, teacher_end, teacher_exact = _runs(teacher, teacher_last)
    return Chunks(student_start, student_end, teacher_start, teacher_end, student_exact & teacher_exact)


def _common_ends(student: Indices, teacher: Indices) -> tuple[Indices, Indices]:
    """Tokens that end where a token of the other side ends, paired: [c] places in each of the two."""
    size = 1 + max(int(ends[-1]) if len(ends) else 0 for ends in (student, teacher))
    student_ends = np.zeros(size, np.bool_)
    student_ends[student] = True
    teacher_last = _first_at_each_end(teacher, np.flatnonzero(student_ends[teacher]))
    common_ends = np.zeros(size, np.bool_)
    common_ends[teacher[teacher_last]] = True
    student_last = _first_at_each_end(student, np.flatnonzero(common_ends[student]))
    return student_last, teacher_last


def _first_at_each_end(ends: Indices, tokens: Indices) -> Indices:
    """Without the tokens that cover no bytes: they end where the token before them does, or at 0."""
    own = ends[tokens]
    covers = np.empty(len(own), np.bool_)
    covers[:1] = own[:1] > 0
    np.greater(own[1:], own[:-1], out=covers[1:])
    return tokens if covers.all() else tokens[covers]


def _runs(side: _Side, last: Indices) -> tuple[Indices, Indices, NDArray[np.bool_]]:
    """Start, end (exclusive) and exactness of each chunk on one side, given the last token of each that has bytes."""
    end = last + 1
    start = np.zeros_like(end)
    start[1:] = end[:-1]
    special = np.zeros(len(end), np.bool_) if side.special is None else side.special[last]
    if side.special is not None:
        _set_special_apart(start, end, special)
    if len(end) and not special[-1]:
        end[-1] = len(side.ends)
    exact = _all_exact(side.exact, start, end)
    if side.index is None:
        return start, end, exact
    first, final = side.index[start], side.index[end - 1] + 1
    return first, final, exact & (final - first == end - start)


def _set_special_apart(start: Indices, end: Indices, special: NDArray[np.bool_]) -> None:
    """Text tokens without bytes in front of a special token go to the chunk before it, in place."""
    start[special] = end[special] - 1
    before = np.flatnonzero(special[1:] & ~special[:-1])
    end[before] = start[before + 1]


def _all_exact(exact: NDArray[np.bool_] | None, start: Indices, end: Indices) -> NDArray[np.bool_]:
    if exact is None:
        return np.ones(len(start), np.bool_)
    inexact_before = np.concatenate(([0], np.cumsum(~exact)))
    return inexact_before[start] == inexact_before[end]
