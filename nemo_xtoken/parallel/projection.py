"""W between a student's and a teacher's vocabulary that are both sharded over tp.

Student rows lie where Megatron's head puts them. Where a teacher row lies is ours to choose: with the student row that
gives it the most weight, so that an exact match never crosses a rank. What does cross is one value per chunk for every
(rank, teacher row) pair in which the rank's students project onto a row that another rank owns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.sparse_projection import scatter_columns
from nemo_xtoken.parallel.collectives import exchange_rows, gather_sizes
from nemo_xtoken.parallel.vocabulary import RowRange, row_ranges
from nemo_xtoken.projection.matrix import ProjectionMatrix

Ids = NDArray[np.int64]
Placement = Literal["matched", "contiguous"]


@dataclass(frozen=True)
class ShardedProjection:
    """One tp rank's part of W.

    student_rows      the rank's rows of the student's head, without padded ids
    teacher_rows      [owned] int64, ascending teacher ids whose columns this rank owns: the rows of its teacher head
    rows, columns     [entries] int64: local student row, and a column below `owned` or, from there on, a send slot
    weights           [entries] float32
    send, receive     number of values per chunk to and from each tp rank
    receive_columns   [sum(receive)] int64, the owned column that each received value is added to
    """

    student_vocab_size: int
    student_rows: RowRange
    teacher_rows: Tensor
    rows: Tensor
    columns: Tensor
    weights: Tensor
    send: tuple[int, ...]
    receive: tuple[int, ...]
    receive_columns: Tensor
    tp_group: dist.ProcessGroup | None

    def project(self, student: Tensor) -> Tensor:
        """q = W^T p on the owned columns: [c, local student columns] -> [c, owned].

        One all-to-all of [sum(send), c] forward and the reverse one backward; none without a tp group.
        """
        owned = len(self.teacher_rows)
        projected = scatter_columns(student, self.rows, self.columns, self.weights, owned + sum(self.send))
        if self.tp_group is None:
            return projected
        received = exchange_rows(projected[:, owned:].t(), self.send, self.receive, self.tp_group).t()
        return projected[:, :owned].scatter_add(1, self.receive_columns.expand(len(student), -1), received)


def shard_projection(
    matrix: ProjectionMatrix,
    student_head: Tensor,
    tp_group: dist.ProcessGroup | None = None,
    *,
    placement: Placement = "matched",
    teacher_head: Tensor | None = None,
) -> ShardedProjection:
    """Cut W for this rank of tp_group.

    student_head  this rank's shard [V_S/tp, h], contiguous in rank order, uneven shards allowed
    placement     "matched": see the module; "contiguous": teacher rows lie as in `teacher_head` [V_T/tp, h]
    Collectives: one all-gather of a size, two for contiguous placement.
    """
    device = student_head.device
    students = [r.clip(matrix.student_vocab_size) for r in RowRange.of_head(student_head, tp_group)]
    check_head_rows("student", students[-1].end, matrix.student_vocab_size)
    rows, slots = np.nonzero(matrix.indices >= 0)
    entries = _Entries(rows, matrix.indices[rows, slots].astype(np.int64), matrix.weights[rows, slots])
    student_owner = _range_of(students, entries.student)
    if placement == "matched":
        owner = _heaviest_owner(entries, student_owner)
    else:
        assert teacher_head is not None
        teachers = row_ranges(gather_sizes(teacher_head.shape[0], tp_group, device))
        reached = np.unique(entries.teacher)
        check_head_rows("teacher", teachers[-1].end, int(reached[-1]) + 1 if len(reached) else 0)
        owner = (reached, _range_of(teachers, reached))
    return _cut(matrix, entries, student_owner, owner, students, tp_group, device)


def check_head_rows(side: str, rows: int, needed: int) -> None:
    """Raises ConfigError where a head has fewer rows than W needs."""
    if rows < needed:
        raise ConfigError(
            f"W was built for {needed} {side} ids but the {side}'s head has {rows} rows: "
            "use the projection of this pair, or raise the model's vocab_size"
        )


@dataclass(frozen=True)
class _Entries:
    """W in coordinate form: student id, teacher id and weight of each entry."""

    student: Ids
    teacher: Ids
    weight: NDArray[np.float32]

    def of(self, kept: NDArray[np.bool_]) -> _Entries:
        return _Entries(self.student[kept], self.teacher[kept], self.weight[kept])


def _range_of(ranges: list[RowRange], ids: Ids) -> Ids:
    """The range that each id lies in."""
    return np.searchsorted(np.array([r.end for r in ranges]), ids, side="right").astype(np.int64)


def _heaviest_owner(entries: _Entries, student_owner: Ids) -> tuple[Ids, Ids]:
    """Reached teacher ids, ascending, and for each the rank of its heaviest entry (the lowest student id at a tie)."""
    order = np.lexsort((entries.student, -entries.weight, entries.teacher))
    reached, first = np.unique(entries.teacher[order], return_index=True)
    return reached, student_owner[order][first]


def _cut(
    matrix: ProjectionMatrix,
    entries: _Entries,
    student_owner: Ids,
    owner: tuple[Ids, Ids],
    students: list[RowRange],
    tp_group: dist.ProcessGroup | None,
    device: torch.device,
) -> ShardedProjection:
    """This rank's entries, what it sends and what it receives."""
    tp_rank, tp_size = (0, 1) if tp_group is None else (tp_group.rank(), tp_group.size())
    reached, reached_owner = owner
    column_owner = reached_owner[np.searchsorted(reached, entries.teacher)]
    owned = reached[reached_owner == tp_rank]
    is_mine, is_owned_here = student_owner == tp_rank, column_owner == tp_rank

    mine = entries.of(is_mine)
    slots, send = _slots(mine.teacher, column_owner[is_mine], exclude=tp_rank, ranks=tp_size)
    local = np.searchsorted(owned, mine.teacher)
    columns = np.where(is_owned_here[is_mine], local, len(owned) + slots)

    theirs = is_owned_here & ~is_mine
    pairs = np.unique(np.stack([student_owner[theirs], entries.teacher[theirs]]), axis=1)
    receive = np.bincount(pairs[0], minlength=tp_size)
    return ShardedProjection(
        student_vocab_size=matrix.student_vocab_size,
        student_rows=students[tp_rank],
        teacher_rows=torch.from_numpy(owned).to(device),
        rows=torch.from_numpy(mine.student - students[tp_rank].start).to(device),
        columns=torch.from_numpy(columns).to(device),
        weights=torch.from_numpy(mine.weight).to(device),
        send=send,
        receive=tuple(int(n) for n in receive),
        receive_columns=torch.from_numpy(np.searchsorted(owned, pairs[1])).to(device),
        tp_group=tp_group if tp_size > 1 else None,
    )


def _slots(teacher: Ids, column_owner: Ids, *, exclude: int, ranks: int) -> tuple[Ids, tuple[int, ...]]:
    """Send slot of each entry, one per (rank, teacher id) in that order, and the number of slots per rank."""
    is_sent = column_owner != exclude
    pairs, slot = np.unique(np.stack([column_owner[is_sent], teacher[is_sent]]), axis=1, return_inverse=True)
    slots = np.zeros(len(teacher), np.int64)
    slots[is_sent] = slot.reshape(-1)
    return slots, tuple(int(n) for n in np.bincount(pairs[0], minlength=ranks))


def cut_head(teacher_head: Tensor, projection: ShardedProjection, teacher_group: dist.ProcessGroup | None) -> Tensor:
    """The rows of a teacher's head that this rank of the student's tp group owns: -> [owned, h].

    teacher_head   this rank's shard [V_T/teacher tp, h] of a contiguously sharded head; shards may be uneven
    teacher_group  the teacher's own tp group; None where the head is whole
    Collectives: an all-gather of sizes and one broadcast of each shard; done once, at the start of a run.
    """
    ranges = RowRange.of_head(teacher_head, teacher_group)
    wanted = projection.teacher_rows
    check_head_rows("teacher", ranges[-1].end, int(wanted[-1]) + 1 if len(wanted) else 0)
    cut = teacher_head.new_empty(len(wanted), teacher_head.shape[1])
    for rank, shard_range in enumerate(ranges):
        shard = teacher_head.detach()
        if teacher_group is not None and teacher_group.size() > 1:
            shard = shard.clone() if rank == teacher_group.rank() else shard.new_empty(len(shard_range), shard.shape[1])
            dist.broadcast(shard, dist.get_global_rank(teacher_group, rank), group=teacher_group)
        local = shard_range.local(wanted)
        cut[local >= 0] = shard[local[local >= 0]]
    return cut
