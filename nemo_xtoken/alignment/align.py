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
    last; where the other side has only special tokens or none, text is in no chunk. Time is linear in tokens and bytes.
    Raises AlignmentError where the two cover texts of different length.
    """
    student_size, teacher_size = _size(student), _size(teacher)
    if student_size != teacher_size and len(student) and len(teacher):
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
    if encoding.roles is None:
        return _Side(encoding.ends, exact=encoding.exact)
    special = np.zeros(len(encoding), np.bool_)
    special[paired] = True
    if np.count_nonzero(encoding.roles) == len(paired):
        return _Side(_apart(encoding.ends, special), special, exact=encoding.exact)
    index = (special | (encoding.roles == 0)).nonzero()[0]
    special = special[index]
    exact = None if encoding.exact is None else encoding.exact[index]
    return _Side(_apart(encoding.ends[index], special), special, index, exact)


def _apart(ends: Indices, special: NDArray[np.bool_]) -> Indices:
    """Ends of tokens as if each special one covered a byte of its own."""
    return ends + special.cumsum()


def _chunks(student: _Side, teacher: _Side) -> Chunks:
    student_last, teacher_last = _common_ends(student.ends, teacher.ends)
    student_start, student_end, student_exact = _runs(student, student_last)
    teacher_start, teacher_end, teacher_exact = _runs(teacher, teacher_last)
    exact = np.ones(len(student_last), np.bool_)
    for side_exact in (student_exact, teacher_exact):
        if side_exact is not None:
            exact &= side_exact
    return Chunks(student_start, student_end, teacher_start, teacher_end, exact)


def _common_ends(student: Indices, teacher: Indices) -> tuple[Indices, Indices]:
    """Tokens that end where a token of the other side ends, paired: [c] places in each of the two."""
    size = 1 + max(int(ends[-1]) if len(ends) else 0 for ends in (student, teacher))
    is_end = np.zeros(size, np.bool_)
    is_end[student] = True
    is_common = np.zeros(size, np.bool_)
    is_common[teacher[is_end[teacher]]] = True
    is_common[0] = False
    count = int(np.count_nonzero(is_common))
    return _first_at_each_end(student, is_common, count), _first_at_each_end(teacher, is_common, count)


def _first_at_each_end(ends: Indices, is_common: NDArray[np.bool_], count: int) -> Indices:
    """The token of each common end; those after it that end there too cover no bytes. count: common ends."""
    places = is_common[ends].nonzero()[0]
    if len(places) == count:
        return places
    own = ends[places]
    return places[np.append(True, own[1:] > own[:-1])]


def _runs(side: _Side, last: Indices) -> tuple[Indices, Indices, NDArray[np.bool_] | None]:
    """Start, end (exclusive) and exactness (None: all) of each chunk on one side, given the last token of each that
    has bytes, in whose array the ends are returned."""
    special = None if side.special is None else side.special[last]
    end: Indices = np.add(last, 1, out=last)
    start = np.empty_like(end)
    start[:1] = 0
    start[1:] = end[:-1]
    if special is not None:
        _set_special_apart(start, end, special)
    if len(end) and (special is None or not special[-1]):
        end[-1] = len(side.ends)
    exact = None if side.exact is None else _all_exact(side.exact, start, end)
    if side.index is None:
        return start, end, exact
    first, final = side.index[start], side.index[end - 1] + 1
    encloses_no_gap = final - first == end - start
    return first, final, encloses_no_gap if exact is None else exact & encloses_no_gap


def _set_special_apart(start: Indices, end: Indices, special: NDArray[np.bool_]) -> None:
    """Text tokens without bytes in front of a special token go to the chunk before it, in place."""
    places = special.nonzero()[0]
    start[places] = end[places] - 1
    before = places[1:] - 1 if len(places) and places[0] == 0 else places - 1
    before = before[~special[before]]
    end[before] = start[before + 1]


def _all_exact(exact: NDArray[np.bool_], start: Indices, end: Indices) -> NDArray[np.bool_]:
    inexact_before = np.concatenate(([0], np.cumsum(~exact)))
    return inexact_before[start] == inexact_before[end]
