"""What of a document goes into one sample: all of it where it fits, else runs of it that are cut between chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """All pieces of prepared data for one pair of sequence lengths, in document order.

    document                     [p] int64
    student_start, student_end   [p] int64, tokens of the document, end exclusive; teacher likewise
    chunk_start, chunk_end       [p] int64, chunks of the document
    dropped_chunks               chunks that alone are longer than a sequence, left out with their tokens
    prompt_pieces                pieces left out since they hold nothing but prompt
    """

    document: NDArray[np.int64]
    student_start: NDArray[np.int64]
    student_end: NDArray[np.int64]
    teacher_start: NDArray[np.int64]
    teacher_end: NDArray[np.int64]
    chunk_start: NDArray[np.int64]
    chunk_end: NDArray[np.int64]
    dropped_chunks: int
    prompt_pieces: int = 0

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def student_lengths(self) -> NDArray[np.int64]:
        """[p] student tokens."""
        return self.student_end - self.student_start

    @cached_property
    def teacher_lengths(self) -> NDArray[np.int64]:
        """[p] teacher tokens."""
        return self.teacher_end - self.teacher_start

    @property
    def ends_document(self) -> NDArray[np.bool_]:
        """[p] whether the piece is the last one of its document."""
        return np.diff(self.document, append=-1) != 0


def cut_pieces(prepared: PreparedData, student_sequence_length: int, teacher_sequence_length: int) -> Pieces:
    """The pieces of every document, each at most the two lengths long and as long as it can be.

    Raises DataError where nothing fits.
    """
    fits = prepared.student_lengths <= student_sequence_length
    if prepared.manifest.teacher is not None:
        fits &= prepared.teacher_lengths <= teacher_sequence_length
    rows = np.zeros((int(fits.sum()), 7), np.int64)
    rows[:, 0] = np.flatnonzero(fits)
    rows[:, 2], rows[:, 4], rows[:, 6] = (
        lengths[fits] for lengths in (prepared.student_lengths, prepared.teacher_lengths, prepared.chunk_counts)
    )
    dropped, parts = 0, [rows]
    for i in np.flatnonzero(~fits).tolist():
        cut, left_out = _cut_document(prepared, i, student_sequence_length, teacher_sequence_length)
        parts.append(cut)
        dropped += left_out
    rows = np.concatenate(parts)
    if not len(rows):
        raise DataError(
            f"no chunk of {prepared.path} fits into {student_sequence_length} student and {teacher_sequence_length} "
            "teacher tokens; raise the sequence lengths"
        )
    learnt = rows[:, 2] > prepared.loss_starts[rows[:, 0]]
    prompt_pieces = int((~learnt).sum())
    rows = rows[learnt]
    if not len(rows):
        raise DataError(f"nothing but prompts in {prepared.path}; expected text after them")
    columns = rows[np.argsort(rows[:, 0], kind="stable")].T.copy()
    return Pieces(
        document=columns[0],
        student_start=columns[1],
        student_end=columns[2],
        teacher_start=columns[3],
        teacher_end=columns[4],
        chunk_start=columns[5],
        chunk_end=columns[6],
        dropped_chunks=dropped,
        prompt_pieces=prompt_pieces,
    )


def _cut_document(
    prepared: PreparedData, i: int, student_limit: int, teacher_limit: int
) -> tuple[NDArray[np.int64], int]:
    """Pieces [p, 7] of a document that is too long, and the number of chunks left out."""
    student_cuts, teacher_cuts = _cuts(prepared, i)
    has_chunks = prepared.manifest.teacher is not None
    rows: list[tuple[int, ...]] = []
    dropped = 0
    for first, last in _runs(student_cuts, teacher_cuts, student_limit, teacher_limit):
        if last == first:
            dropped += 1
            continue
        chunks = (first, min(last, int(prepared.chunk_counts[i]))) if has_chunks else (0, 0)
        tokens = (student_cuts[first], student_cuts[last], teacher_cuts[first], teacher_cuts[last])
        rows.append((i, *map(int, tokens), *chunks))
    return np.array(rows, np.int64).reshape(-1, 7), dropped


def _cuts(prepared: PreparedData, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the document may be cut, [units + 1] on both sides: before a chunk, or without a teacher before a token.

    Tokens in no chunk stay with the chunk before them; those before the first chunk with the first.
    """
    length = int(prepared.student_lengths[i])
    if prepared.manifest.teacher is None:
        return np.arange(length + 1), np.zeros(length + 1, np.int64)
    table = prepared.chunk_table(i)

    def edges(starts: NDArray[np.int32], end: int) -> NDArray[np.int64]:
        return np.concatenate([[0], starts[1:], [end]]).astype(np.int64)

    return edges(table[:, 0], length), edges(table[:, 2], int(prepared.teacher_lengths[i]))


def _runs(
    student_cuts: NDArray[np.int64], teacher_cuts: NDArray[np.int64], student_limit: int, teacher_limit: int
) -> Iterator[tuple[int, int]]:
    """Longest runs [first, last) of units that fit, from the front; (u, u) for a unit u that does not fit alone."""
    first, units = 0, len(student_cuts) - 1
    while first < units:
        last_student = int(np.searchsorted(student_cuts, int(student_cuts[first]) + student_limit, side="right")) - 1
        last_teacher = int(np.searchsorted(teacher_cuts, int(teacher_cuts[first]) + teacher_limit, side="right")) - 1
        last = min(last_student, last_teacher)
        yield first, last
        first = max(last, first + 1)
