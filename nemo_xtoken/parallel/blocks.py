"""The rows that a micro batch really needs, and their partition into blocks that no chunk crosses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch

TEACHER_ROWS_PER_STUDENT_ROW = 2
"""A block holds at most this many times `block_rows` teacher rows (unless a single chunk has more)."""


@dataclass(frozen=True)
class RowPlan:
    """The rows in use, padding left out, and the counted chunks in positions among them.

    student_rows    [n] int64 rows of [b*s] that have a label to predict or lie in a counted chunk, ascending
    labels, mask    [n] their label and cross-entropy weight
    teacher_rows    [m] int64 rows of [b*t] that lie in a counted chunk, chunk after chunk
    teacher_labels  [m] their label
    chunks          positions in these two
    """

    student_rows: Tensor
    labels: Tensor
    mask: Tensor
    teacher_rows: Tensor
    teacher_labels: Tensor
    chunks: ChunkRows

    @classmethod
    def of(cls, batch: DistillBatch, chunks: ChunkRows) -> RowPlan:
        """The plan of a micro batch for the chunks that count, which may be none."""
        labels, mask = batch.student_labels.flatten(), batch.student_loss_mask.flatten()
        in_use = (labels != IGNORED_LABEL) & (mask > 0)
        in_use[run_rows(chunks.student_start, chunks.student_end)[0]] = True
        rows = in_use.nonzero().squeeze(-1)
        student_start = in_use.cumsum(0)[chunks.student_start] - 1
        teacher_rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end)
        teacher_end = (chunks.teacher_end - chunks.teacher_start).cumsum(0)
        positions = ChunkRows(
            student_start=student_start,
            student_end=student_start + chunks.student_end - chunks.student_start,
            teacher_start=teacher_end - (chunks.teacher_end - chunks.teacher_start),
            teacher_end=teacher_end,
            mask=chunks.mask,
        )
        teacher_labels = batch.teacher_labels.flatten()[teacher_rows]
        return cls(rows, labels[rows], mask[rows], teacher_rows, teacher_labels, positions)

    def blocks(self, block_rows: int) -> Iterator[Block]:
        """Consecutive blocks of at most block_rows student rows; a longer chunk is a block of its own."""
        starts, ends, teacher_ends = (
            t.tolist() for t in (self.chunks.student_start, self.chunks.student_end, self.chunks.teacher_end)
        )
        row, chunk, teacher_row = 0, 0, 0
        while row < len(self.student_rows):
            limit = min(row + block_rows, len(self.student_rows))
            teacher_limit = teacher_row + TEACHER_ROWS_PER_STUDENT_ROW * block_rows
            last = chunk
            while last < len(starts) and ends[last] <= limit and teacher_ends[last] <= teacher_limit:
                last += 1
            if last < len(starts) and starts[last] < limit:
                if starts[last] > row:
                    limit = starts[last]
                else:
                    limit, last = ends[last], last + 1
            next_teacher_row = teacher_ends[last - 1] if last > chunk else teacher_row
            yield self._block(slice(row, limit), slice(teacher_row, next_teacher_row), slice(chunk, last))
            row, chunk, teacher_row = limit, last, next_teacher_row

    def _block(self, student: slice, teacher: slice, chunk: slice) -> Block:
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
        )


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows whose logits are held at the same time, and their chunks in positions among these rows."""

    student_rows: Tensor
    labels: Tensor
    mask: Tensor
    teacher_rows: Tensor
    teacher_labels: Tensor
    chunks: ChunkRows
