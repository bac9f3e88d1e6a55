"""Chunks a block at a time, so that what a loss holds does not grow with the rows of its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.types import ChunkRows

CPU_VALUES, DEVICE_VALUES = 2**20, 2**24
"""Logits that a block holds at most: 4 MiB in float32, near a CPU's caches; 64 MiB where each step is a launch."""


def most_rows(columns: int, device: torch.device) -> int:
    """Rows of so many columns that may be held at a time, at least one."""
    return max(1, (CPU_VALUES if device.type == "cpu" else DEVICE_VALUES) // max(1, columns))


@dataclass(frozen=True)
class ChunkBlock:
    """Some chunks and the rows that they need.

    student_rows, teacher_rows  int64 rows of the logits, chunk after chunk
    chunks                      in positions among these
    """

    student_rows: Tensor
    teacher_rows: Tensor
    chunks: ChunkRows

    @classmethod
    def of(cls, chunks: ChunkRows) -> ChunkBlock:
        """The block of all the given chunks."""
        student_rows, _ = run_rows(chunks.student_start, chunks.student_end)
        teacher_rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end)
        student_lengths = chunks.student_end - chunks.student_start
        teacher_lengths = chunks.teacher_end - chunks.teacher_start
        student_end, teacher_end = student_lengths.cumsum(0), teacher_lengths.cumsum(0)
        positions = ChunkRows(
            student_start=student_end - student_lengths,
            student_end=student_end,
            teacher_start=teacher_end - teacher_lengths,
            teacher_end=teacher_end,
            mask=chunks.mask,
        )
        return cls(student_rows, teacher_rows, positions)


def chunk_blocks(chunks: ChunkRows, columns: int, block_rows: int | None) -> Iterator[ChunkBlock]:
    """Consecutive blocks of at most block_rows rows a side, fewer of many columns; a longer chunk is one alone.

    columns  of both sides together
    """
    limit = most_rows(columns, chunks.mask.device)
    if block_rows is not None:
        limit = min(limit, block_rows)
    rows = torch.maximum(chunks.student_end - chunks.student_start, chunks.teacher_end - chunks.teacher_start)
    for part in _parts(rows.tolist(), limit):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        yield ChunkBlock.of(ChunkRows(**{f.name: getattr(chunks, f.name)[part] for f in fields(chunks)}))


def one_to_one(chunks: ChunkRows) -> tuple[ChunkRows, ChunkRows]:
    """The chunks of one row on either side, in which the merges agree, and the others."""
    single = (chunks.student_end - chunks.student_start == 1) & (chunks.teacher_end - chunks.teacher_start == 1)
    return chunks.masked(chunks.mask & single).valid(), chunks.masked(chunks.mask & ~single).valid()


def _parts(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive slices whose sizes add up to at most `limit`, a larger size alone."""
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > limit:
            yield slice(start, i)
            start, held = i, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))
