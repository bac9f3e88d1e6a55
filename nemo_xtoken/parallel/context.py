"""Context parallelism: a chunk's rows may lie on several ranks, so each chunk is given to one, with the rows it lacks.

Megatron cuts a sequence into 2·cp equal parts and gives rank r the parts r and 2·cp - 1 - r. A chunk belongs to the
rank that has its first student row; hidden states of its other rows, on either side, travel there. Logits never do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.parallel.collectives import exchange_rows
from nemo_xtoken.types import ChunkRows, DistillBatch, SparseLogits


def context_positions(length: int, cp_rank: int, cp_size: int) -> Tensor:
    """Positions of a sequence that a rank holds, in the order in which it holds them: [length / cp] int64.

    Raises ConfigError where the sequence can't be cut into 2·cp equal parts.
    """
    if cp_size == 1:
        return torch.arange(length)
    if length % (2 * cp_size):
        raise ConfigError(f"sequence length {length} must be divisible by 2 x context_parallel_size = {2 * cp_size}")
    parts = torch.arange(length).view(2 * cp_size, -1)
    return torch.cat([parts[cp_rank], parts[2 * cp_size - 1 - cp_rank]])


def share_of_rank(
    student_hidden: Tensor,
    teacher_hidden: Tensor | SparseLogits | None,
    batch: DistillBatch,
    cp_group: dist.ProcessGroup,
    *,
    with_following: bool = False,
) -> tuple[Tensor, Tensor | SparseLogits | None, DistillBatch]:
    """What this rank compares: its own rows and chunks, with the hidden states of other ranks that its chunks need.

    student_hidden  [b*s/cp, h_S], teacher_hidden [b*t/cp, h_T]: this rank's rows, batch first, each sequence's in the
                    order of `context_positions`; SparseLogits are of all rows, and do not travel
    batch           the whole micro batch, the same on every rank of cp_group
    with_following  with the teacher's row after each chunk

    Returns hidden states [rows, h] of either side, the student's differentiable back to where they came from, and a
    batch of these rows as one sequence; rows of other ranks carry no cross-entropy in it. Over cp_group the shares have
    every chunk and every row once.
    Collectives: for either side one all-to-all of hidden rows, for the student's the reverse one backward.
    """
    chunks = batch.chunks.valid()
    if teacher_hidden is None:
        chunks = chunks.masked(torch.zeros_like(chunks.mask)).valid()
    sequences, length = batch.student_labels.shape
    student = _Cut(sequences, length, cp_group, batch.student_labels.device)
    chunk_owner = student.owner[chunks.student_start]
    student_wanted, teacher_wanted = _wanted_rows(chunks, chunk_owner, cp_group.size(), with_following)
    own = (student.owner == cp_group.rank()).nonzero().squeeze(-1)
    student_rows = torch.cat([own, student_wanted[cp_group.rank()]]).unique()
    teacher_rows = teacher_wanted[cp_group.rank()]
    student_hidden = student.collect(student_hidden, student_wanted, student_rows)
    if isinstance(teacher_hidden, SparseLogits):
        teacher_hidden = teacher_hidden.rows(teacher_rows)
    elif teacher_hidden is not None:
        teacher = _Cut(sequences, batch.teacher_labels.shape[1], cp_group, batch.teacher_labels.device)
        teacher_hidden = teacher.collect(teacher_hidden, teacher_wanted, teacher_rows)
    mine = chunks.masked(chunk_owner == cp_group.rank()).valid()
    return student_hidden, teacher_hidden, _share(batch, mine, student_rows, teacher_rows, student.owner, cp_group)


class _Cut:
    """Who holds which row of [sequences*length], and where: `owner` and `place` [sequences*length] int64."""

    def __init__(self, sequences: int, length: int, cp_group: dist.ProcessGroup, device: torch.device) -> None:
        owner, place = torch.empty(length, dtype=torch.int64), torch.empty(length, dtype=torch.int64)
        for cp_rank in range(cp_group.size()):
            positions = context_positions(length, cp_rank, cp_group.size())
            owner[positions], place[positions] = cp_rank, torch.arange(len(positions))
        sequence = torch.arange(sequences)[:, None] * (length // cp_group.size())
        self.owner, self.place = owner.repeat(sequences).to(device), (sequence + place).flatten().to(device)
        self.cp_group = cp_group

    def collect(self, hidden: Tensor, wanted: list[Tensor], rows: Tensor) -> Tensor:
        """Hidden states of `rows`, ascending, from this rank's [held, h] and from what the others have of `wanted`."""
        rank, ranks = self.cp_group.rank(), range(self.cp_group.size())
        sent = [self._held_by(rank, wanted[r]) if r != rank else wanted[r][:0] for r in ranks]
        received = [self._held_by(r, wanted[rank]) if r != rank else wanted[rank][:0] for r in ranks]
        outgoing = hidden.index_select(0, self.place[torch.cat(sent)])
        incoming = exchange_rows(outgoing, [len(s) for s in sent], [len(r) for r in received], self.cp_group)
        here = self._held_by(rank, rows)
        gathered = torch.cat([hidden.index_select(0, self.place[here]), incoming])
        return gathered.index_select(0, torch.cat([here, *received]).argsort())

    def _held_by(self, rank: int, rows: Tensor) -> Tensor:
        return rows[self.owner[rows] == rank]


def _wanted_rows(
    chunks: ChunkRows, owner: Tensor, cp_size: int, with_following: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Student and teacher rows of every rank's chunks, ascending."""
    student_rows, student_chunk = run_rows(chunks.student_start, chunks.student_end)
    teacher_rows, teacher_chunk = run_rows(chunks.teacher_start, chunks.teacher_end + int(with_following))
    return (
        [student_rows[owner[student_chunk] == rank] for rank in range(cp_size)],
        [teacher_rows[owner[teacher_chunk] == rank].unique() for rank in range(cp_size)],
    )


def _share(
    batch: DistillBatch,
    chunks: ChunkRows,
    student_rows: Tensor,
    teacher_rows: Tensor,
    owner: Tensor,
    cp_group: dist.ProcessGroup,
) -> DistillBatch:
    """The batch of these rows, with the chunks in their numbering."""
    renumbered = ChunkRows(
        student_start=torch.searchsorted(student_rows, chunks.student_start),
        student_end=torch.searchsorted(student_rows, chunks.student_end - 1) + 1,
        teacher_start=torch.searchsorted(teacher_rows, chunks.teacher_start),
        teacher_end=torch.searchsorted(teacher_rows, chunks.teacher_end - 1) + 1,
        mask=chunks.mask,
    )
    counts = owner[student_rows] == cp_group.rank()
    return replace(
        batch,
        student_tokens=batch.student_tokens.flatten()[student_rows][None],
        student_position_ids=batch.student_position_ids.flatten()[student_rows][None],
        student_labels=batch.student_labels.flatten()[student_rows][None],
        student_loss_mask=(batch.student_loss_mask.flatten()[student_rows] * counts)[None],
        teacher_tokens=batch.teacher_tokens.flatten()[teacher_rows][None],
        teacher_position_ids=batch.teacher_position_ids.flatten()[teacher_rows][None],
        teacher_labels=batch.teacher_labels.flatten()[teacher_rows][None],
        chunks=renumbered,
    )
