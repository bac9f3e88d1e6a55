"""What of a document goes into one sample: all of it where it fits, else runs of it that are cut between chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """All pieces of prepared data for the sequence lengths of all sides, in document order.

    document                     [p] int64
    student_start, student_end   [p] int64, tokens of the document, end exclusive
    teacher_start, teacher_end   [teachers, p] int64, likewise
    chunk_start, chunk_end       [teachers, p] int64, chunks of the document
    dropped_chunks               chunks that alone are longer than a sequence, left out with their tokens; with several
                                 teachers the shortest runs that are whole chunks for all of them
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
        """[teachers, p] teacher tokens."""
        return self.teacher_end - self.teacher_start

    @property
    def ends_document(self) -> NDArray[np.bool_]:
        """[p] whether the piece is the last one of its document."""
        return np.diff(self.document, append=-1) != 0


def cut_pieces(prepared: PreparedData, student_sequence_length: int, teacher_sequence_lengths: Sequence[int]) -> Pieces:
    """The pieces of every document, each as long as it can be within the sequence lengths; those of all teachers.

    Raises DataError where nothing fits.
    """
    limits = np.array([student_sequence_length, *teacher_sequence_lengths])
    lengths = np.stack([prepared.student_lengths, *(teacher.lengths for teacher in prepared.teachers)])
    fits: NDArray[np.bool_] = np.all(lengths <= limits[:, None], axis=0)
    dropped, parts = 0, [_whole_documents(prepared, lengths, fits)]
    for i in np.flatnonzero(~fits).tolist():
        cut, left_out = _cut_document(prepared, i, limits)
        parts.append(cut)
        dropped += left_out
    rows = np.concatenate(parts)
    if not len(rows):
        raise DataError(
            f"no chunk of {prepared.path} fits into {student_sequence_length} student and "
            f"{', '.join(map(str, teacher_sequence_lengths))} teacher tokens; raise the sequence lengths"
        )
    sides = len(limits)
    learnt = rows[:, 1 + sides] > prepared.loss_starts[rows[:, 0]]
    prompt_pieces = int((~learnt).sum())
    rows = rows[learnt]
    if not len(rows):
        raise DataError(f"nothing but prompts in {prepared.path}; expected text after them")
    columns = rows[np.argsort(rows[:, 0], kind="stable")].T.copy()
    starts, ends, chunks = columns[1 : 1 + sides], columns[1 + sides : 1 + 2 * sides], columns[1 + 2 * sides :]
    return Pieces(
        document=columns[0],
        student_start=starts[0],
        student_end=ends[0],
        teacher_start=starts[1:],
        teacher_end=ends[1:],
        chunk_start=chunks[: sides - 1],
        chunk_end=chunks[sides - 1 :],
        dropped_chunks=dropped,
        prompt_pieces=prompt_pieces,
    )


def _whole_documents(
    prepared: PreparedData, lengths: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Rows of the chosen documents, a piece each: document, starts and ends of all sides, chunk starts and ends."""
    documents, sides = np.flatnonzero(chosen), len(lengths)
    rows = np.zeros((len(documents), 4 * sides - 1), np.int64)
    rows[:, 0] = documents
    rows[:, 1 + sides : 1 + 2 * sides] = lengths[:, chosen].T
    for number, teacher in enumerate(prepared.teachers):
        rows[:, 3 * sides + number] = teacher.chunk_counts[chosen]
    return rows


def _cut_document(prepared: PreparedData, i: int, limits: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Rows, as of `_whole_documents`, of a document that is too long, and the number of runs left out."""
    tokens, chunks = _cuts(prepared, i)
    rows: list[NDArray[np.int64]] = []
    dropped = 0
    for first, last in _runs(tokens, limits):
        if last == first:
            dropped += 1
            continue
        rows.append(np.concatenate([[i], tokens[:, first], tokens[:, last], chunks[:, first], chunks[:, last]]))
    return np.array(rows, np.int64).reshape(-1, 4 * len(limits) - 1), dropped


def _cuts(prepared: PreparedData, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the document may be cut: tokens [1 + teachers, units + 1], the student's first, and chunks [teachers, ...].

    That is before a student token that begins a chunk with every teacher, or without a teacher before any. Tokens in no
    chunk stay with the chunk before them; those before the first chunk with the first.
    """
    length = int(prepared.student_lengths[i])
    if not prepared.teachers:
        return np.arange(length + 1)[None], np.empty((0, length + 1), np.int64)
    tables = [teacher.chunk_table(i) for teacher in prepared.teachers]
    inner: NDArray[Any] = tables[0][1:, 0]
    for table in tables[1:]:
        inner = np.intersect1d(inner, table[1:, 0], assume_unique=True)

    def cuts(of_inner: NDArray[Any], end: int) -> NDArray[np.int64]:
        return np.concatenate([[0], of_inner, [end]]).astype(np.int64)

    tokens = [cuts(inner, length)]
    chunks: list[NDArray[np.int64]] = []
    for teacher, table in zip(prepared.teachers, tables, strict=True):
        at = np.searchsorted(table[:, 0], inner)
        tokens.append(cuts(table[at, 2], int(teacher.lengths[i])))
        chunks.append(cuts(at, len(table)))
    return np.stack(tokens), np.stack(chunks)


def _runs(cuts: NDArray[np.int64], limits: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Longest runs [first, last) of units that fit, from the front; (u, u) for a unit u that does not fit alone."""
    first, units = 0, cuts.shape[1] - 1
    while first < units:
        ends: list[int] = (cuts[:, first] + limits).tolist()
        last = min(int(np.searchsorted(side, end, side="right")) - 1 for side, end in zip(cuts, ends, strict=True))
        yield first, last
        first = max(last, first + 1)
