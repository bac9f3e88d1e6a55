"""The rows that a micro batch really needs, and their partition into blocks that no chunk crosses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.losses.piece_chain import PieceChain
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch

Fits = Callable[[int, int], bool]
"""Whether a block may have so many student and so many teacher rows."""


@dataclass(frozen=True)
class Spans:
    """The chunks of a block on the host: starts and ends of student and teacher rows, for planning without waits."""

    student_start: list[int]
    student_end: list[int]
    teacher_start: list[int]
    teacher_end: list[int]
    teacher_limit: list[int]
    """Where the teacher rows end with the one after the chunk, where that is looked at."""

    @classmethod
    def of(cls, chunks: ChunkRows, followed: Tensor) -> Spans:
        """Copied from the device."""
        limit: list[int] = (chunks.teacher_end + followed).tolist()
        names = (field.name for field in fields(cls) if field.name != "teacher_limit")
        return cls(**{name: getattr(chunks, name).tolist() for name in names}, teacher_limit=limit)

    def every_row_is_a_chunk(self, student_rows: int) -> tuple[bool, bool]:
        """Whether there is one chunk per row, in order: of student rows, and of teacher rows."""
        rows = list(range(len(self.student_start)))
        return (
            len(rows) == student_rows and self.student_start == rows and self.student_end == [r + 1 for r in rows],
            self.teacher_start == rows and self.teacher_end == self.teacher_limit == [r + 1 for r in rows],
        )

    def part(self, chunks: slice, student: int, teacher: int) -> Spans:
        """Some of the chunks, in rows counted from the given ones."""
        offsets = (student, student, teacher, teacher, teacher)
        lists = (getattr(self, field.name)[chunks] for field in fields(self))
        return Spans(*([row - offset for row in rows] for rows, offset in zip(lists, offsets, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that are looked at together, padding left out, and the counted chunks in positions among them.

    student_rows    [n] int64 rows of [b*s] that have a label to predict or lie in a counted chunk, ascending
    labels, mask    [n] their label and cross-entropy weight
    teacher_rows    [m] int64 rows of [b*t] that lie in a counted chunk, chunk after chunk; after one that is followed
                    the row after it
    teacher_labels  [m] their label
    chunks, spans   positions in these two, on the device and on the host
    followed        [c] bool, chunks after which the teacher's next row is here as well
    """

    student_rows: Tensor
    labels: Tensor
    mask: Tensor
    teacher_rows: Tensor
    teacher_labels: Tensor
    chunks: ChunkRows
    spans: Spans
    followed: Tensor

    @classmethod
    def of(cls, batch: DistillBatch, chunks: ChunkRows, chain: PieceChain | None = None) -> Block:
        """All rows of a micro batch that the chunks that count, which may be none, and cross-entropy need.

        With the pieces of `loss.chain` also the teacher's rows that say whether a token ends.
        """
        labels, mask = batch.student_labels.flatten(), batch.student_loss_mask.flatten()
        in_use = (labels != IGNORED_LABEL) & (mask > 0)
        in_use[run_rows(chunks.student_start, chunks.student_end)[0]] = True
        rows = in_use.nonzero().squeeze(-1)
        student_start = in_use.cumsum(0)[chunks.student_start] - 1
        teacher_labels = batch.teacher_labels.flatten()
        followed = torch.zeros_like(chunks.mask)
        if chain is not None:
            followed = chain.student.followed(chunks, labels, teacher_labels)
        lengths = chunks.teacher_end - chunks.teacher_start
        teacher_rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end + followed)
        teacher_end = (lengths + followed).cumsum(0) - followed.long()
        positions = ChunkRows(
            student_start=student_start,
            student_end=student_start + chunks.student_end - chunks.student_start,
            teacher_start=teacher_end - lengths,
            teacher_end=teacher_end,
            mask=chunks.mask,
        )
        return cls(
            student_rows=rows,
            labels=labels[rows],
            mask=mask[rows],
            teacher_rows=teacher_rows,
            teacher_labels=teacher_labels[teacher_rows],
            chunks=positions,
            spans=Spans.of(positions, followed),
            followed=followed,
        )

    def split(self, fits: Fits) -> Iterator[tuple[Block, slice, slice]]:
        """Consecutive parts that fit, with their student and teacher rows; a chunk that doesn't is a part by itself."""
        row, chunk, teacher_row = 0, 0, 0
        while row < len(self.student_rows):
            limit, last = self._reach(row, chunk, fits)
            next_teacher_row = self.spans.teacher_limit[last - 1] if last > chunk else teacher_row
            student, teacher = slice(row, limit), slice(teacher_row, next_teacher_row)
            yield self._part(student, teacher, slice(chunk, last)), student, teacher
            row, chunk, teacher_row = limit, last, next_teacher_row

    def _reach(self, row: int, chunk: int, fits: Fits) -> tuple[int, int]:
        """How far the part that begins with this row and chunk goes, in rows and in chunks."""
        spans, end, last = self.spans, row, chunk
        first_teacher = spans.teacher_start[chunk] if chunk < len(spans.teacher_start) else 0
        teachers = 0
        while end < len(self.student_rows):
            begins = last < len(spans.student_start) and spans.student_start[last] == end
            next_end = spans.student_end[last] if begins else end + 1
            next_teachers = spans.teacher_limit[last] - first_teacher if begins else teachers
            if end > row and not fits(next_end - row, next_teachers):
                break
            end, teachers, last = next_end, next_teachers, last + begins
        return end, last

    def _part(self, student: slice, teacher: slice, chunk: slice) -> Block:
        chunks = ChunkRows(
            student_start=self.chunks.student_start[chunk] - student.start,
            student_end=self.chunks.student_end[chunk] - student.start,
            teacher_start=self.chunks.teacher_start[chunk] - teacher.start,
            teacher_end=self.chunks.teacher_end[chunk] - teacher.start,
            mask=self.chunks.mask[chunk],
        )
        return Block(
            student_rows=self.student_rows[student],
            labels=self.labels[student],
            mask=self.mask[student],
            teacher_rows=self.teacher_rows[teacher],
            teacher_labels=self.teacher_labels[teacher],
            chunks=chunks,
            spans=self.spans.part(chunk, student.start, teacher.start),
            followed=self.followed[chunk],
        )
