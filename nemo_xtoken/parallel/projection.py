"""W between a student's and a teacher's vocabulary that are both sharded over tp.

Student rows lie where Megatron's head puts them. Where a teacher row lies is ours to choose: with the student row that
gives it the most weight, so that an exact match never crosses a rank. What does cross is one value per chunk for every
(rank, teacher row) pair in which the rank's students project onto a row that another rank owns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.losses.sparse_projection import scatter_columns
from nemo_xtoken.parallel.collectives import exchange_rows
from nemo_xtoken.parallel.vocabulary import RowRange, range_of, student_ranges
from nemo_xtoken.projection.matrix import ProjectionMatrix

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ShardedProjection:
    """One tp rank's part of W.

    student_rows      the rank's rows of the student's head, without padded ids
    teacher_rows      [owned] int64, ascending teacher ids whose columns this rank owns: the rows of its teacher head
    rows, columns     [entries] int64: local student row, and a column below `owned` or, from there on, a send slot
    weights           [entries] float32
    slots             [entries] int64, where each stands in the rank's rows of W, [local rows, K] flattened
    send, receive     number of values per chunk to and from each tp rank
    receive_columns   [sum(receive)] int64, the owned column that each received value is added to
    """

    student_rows: RowRange
    teacher_rows: Tensor
    rows: Tensor
    columns: Tensor
    weights: Tensor
    slots: Tensor
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
    matrix: ProjectionMatrix, student_head: Tensor, tp_group: dist.ProcessGroup | None = None
) -> ShardedProjection:
    """Cut W for this rank of tp_group: student_head is its shard [V_S/tp, h], contiguous in rank order, maybe uneven.

    Collectives: one all-gather of a size. Raises ConfigError where the head has fewer rows than W.
    """
    students = student_ranges(student_head, matrix.student_vocab_size, tp_group)
    rows, slots = np.nonzero(matrix.indices >= 0)
    entries = _Entries(rows, slots, matrix.indices[rows, slots].astype(np.int64), matrix.weights[rows, slots])
    tp_rank = 0 if tp_group is None else tp_group.rank()
    cut = _Cut(entries, range_of(students, entries.student), tp_rank, len(students))
    own_rows = cut.mine.student - students[tp_rank].start
    own_slots = own_rows * matrix.indices.shape[1] + cut.mine.slot
    arrays = (cut.owned, own_rows, cut.columns(), cut.mine.weight, own_slots)
    teacher_rows, local_rows, columns, weights, slots = (torch.as_tensor(a, device=student_head.device) for a in arrays)
    receive, receive_columns = cut.receive()
    return ShardedProjection(
        student_rows=students[tp_rank],
        teacher_rows=teacher_rows,
        rows=local_rows,
        columns=columns,
        weights=weights,
        slots=slots,
        send=cut.send(),
        receive=receive,
        receive_columns=torch.as_tensor(receive_columns, device=student_head.device),
        tp_group=tp_group if len(students) > 1 else None,
    )


@dataclass(frozen=True)
class _Entries:
    """W in coordinate form: student id, place in its row, teacher id and weight of each entry."""

    student: Ids
    slot: Ids
    teacher: Ids
    weight: NDArray[np.float32]

    def of(self, kept: NDArray[np.bool_]) -> _Entries:
        return _Entries(self.student[kept], self.slot[kept], self.teacher[kept], self.weight[kept])


class _Cut:
    """W's entries as one rank sees them: its own, those of others that reach its columns, and what is exchanged."""

    def __init__(self, entries: _Entries, student_owner: Ids, tp_rank: int, tp_size: int) -> None:
        self.tp_rank, self.tp_size = tp_rank, tp_size
        reached, reached_owner = _heaviest_owner(entries, student_owner)
        self.owned = reached[reached_owner == tp_rank]
        column_owner = reached_owner[np.searchsorted(reached, entries.teacher)]
        is_mine = student_owner == tp_rank
        self.mine, self.mine_owner = entries.of(is_mine), column_owner[is_mine]
        self.sent = _unique_pairs(self.mine_owner, self.mine.teacher, self.mine_owner != tp_rank)
        self.received = _unique_pairs(student_owner, entries.teacher, (column_owner == tp_rank) & ~is_mine)

    def columns(self) -> Ids:
        """Column of each own entry: an owned one, or behind these the slot in which it is sent."""
        pairs = self.mine_owner * (1 + self.mine.teacher.max(initial=0)) + self.mine.teacher
        sent = self.sent[0] * (1 + self.mine.teacher.max(initial=0)) + self.sent[1]
        slots = len(self.owned) + np.searchsorted(sent, pairs)
        return np.where(self.mine_owner == self.tp_rank, np.searchsorted(self.owned, self.mine.teacher), slots)

    def send(self) -> tuple[int, ...]:
        """Values per chunk to each rank."""
        return tuple(int(n) for n in np.bincount(self.sent[0], minlength=self.tp_size))

    def receive(self) -> tuple[tuple[int, ...], Ids]:
        """Values per chunk from each rank, and the owned column that each belongs to."""
        counts = tuple(int(n) for n in np.bincount(self.received[0], minlength=self.tp_size))
        return counts, np.searchsorted(self.owned, self.received[1])


def _heaviest_owner(entries: _Entries, student_owner: Ids) -> tuple[Ids, Ids]:
    """Reached teacher ids, ascending, and for each the rank of its heaviest entry (the lowest student id at a tie)."""
    order = np.lexsort((entries.student, -entries.weight, entries.teacher))
    reached, first = np.unique(entries.teacher[order], return_index=True)
    return reached, student_owner[order][first]


def _unique_pairs(rank: Ids, teacher: Ids, kept: NDArray[np.bool_]) -> Ids:
    """The different (rank, teacher id) pairs, [2, pairs], by rank and then by id."""
    return np.unique(np.stack([rank[kept], teacher[kept]]), axis=1)
