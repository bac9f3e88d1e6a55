"""W between a student's and a teacher's vocabulary that are both sharded over tp.

Student rows lie where Megatron's head puts them; where a teacher row lies is `placement`'s choice. What crosses is one
value per chunk for every (rank, teacher row) pair in which the rank's students project onto a row that another rank
owns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.config import Implementation
from nemo_xtoken.kernels import ScatterPlan, scatter_columns
from nemo_xtoken.losses.piece_chain import PieceChain
from nemo_xtoken.parallel.collectives import exchange_rows, gather_sizes
from nemo_xtoken.parallel.placement import Ids, place_columns, unique_pairs
from nemo_xtoken.parallel.vocabulary import RowRange, Widths, range_of, student_ranges
from nemo_xtoken.projection.matrix import ProjectionMatrix


@dataclass(frozen=True)
class ShardedProjection:
    """One tp rank's part of W, or of W on some of its teacher columns.

    student_rows      the rank's rows of the student's head, without padded ids
    teacher_rows      [owned] int64, ascending teacher ids whose columns this rank owns: the rows of its teacher head;
                      of a `chain` behind them [folded] the tokens that count as one of these
    rows, columns     [entries] int64: local student row, and a column below `owned` or, from there on, a send slot
    weights           [entries] float32
    slots             [entries] int64, where each stands in the rank's rows of W, [local rows, K] flattened
    send, receive     number of values per chunk to and from each tp rank
    receive_columns   [sum(receive)] int64, the owned column that each received value is added to
    widths            student rows and teacher columns of the rank that has most
    student_columns   [tied] int64, ascending local student rows with an entry, which `rows` then counts; None: all
    chain             the pieces of both sides' tokens for `loss.chain`, whose W is the first piece of each; else None
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
    plan: ScatterPlan
    widths: Widths
    student_columns: Tensor | None = None
    chain: PieceChain | None = None

    @property
    def tp_size(self) -> int:
        """Ranks that W is cut for."""
        return len(self.send)

    @property
    def owned(self) -> int:
        """Columns that this rank owns."""
        return len(self.teacher_rows) if self.chain is None else self.chain.fold.width

    def project(self, student: Tensor, implementation: Implementation = "auto") -> Tensor:
        """q = W^T p on the owned columns: [c, local or tied student columns] -> [c, owned].

        One all-to-all of [sum(send), c] forward and the reverse one backward; none without a tp group.
        """
        owned = self.owned
        projected = scatter_columns(
            student, self.rows, self.columns, self.weights, owned + sum(self.send),
            plan=self.plan, implementation=implementation,
        )  # fmt: skip
        if self.tp_group is None:
            return projected
        received = exchange_rows(projected[:, owned:].t(), self.send, self.receive, self.tp_group).t()
        return projected[:, :owned].scatter_add(1, self.receive_columns.expand(len(student), -1), received)

    def on(self, columns: Tensor) -> ShardedProjection:
        """W on some of the owned columns, ascending [selected] int64, and on the student rows that it ties to them.

        Collectives: one all-to-all of [sum(receive)] flags; none without a tp group.
        """
        owned, sent = self.owned, sum(self.send)
        place = torch.full((owned + sent,), -1, device=columns.device)
        place[columns] = torch.arange(len(columns), device=columns.device)
        receive_columns = place[self.receive_columns]
        is_sent = (receive_columns >= 0).to(self.weights.dtype)
        if self.tp_group is not None:
            flags = exchange_rows(is_sent, self.receive, self.send, self.tp_group) > 0
            place[owned:][flags] = len(columns) + torch.arange(int(flags.sum()), device=columns.device)
            send = tuple(int(part.sum()) for part in flags.split(self.send))
            receive = tuple(int(part.sum()) for part in is_sent.split(self.receive))
        else:
            send, receive = self.send, self.receive
        kept = (place[self.columns] >= 0).nonzero().squeeze(-1)
        student_columns, rows = self.rows[kept].unique(return_inverse=True)
        targets = place[self.columns[kept]]
        return replace(
            self,
            teacher_rows=self.teacher_rows[columns],
            rows=rows,
            columns=targets,
            weights=self.weights[kept],
            slots=self.slots[kept],
            send=send,
            receive=receive,
            receive_columns=receive_columns[receive_columns >= 0],
            plan=ScatterPlan.of(rows, targets, len(student_columns), len(columns) + sum(send)),
            student_columns=student_columns,
        )


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
    cut = _Cut(matrix, entries, range_of(students, entries.student), tp_rank, len(students))
    own_rows = cut.mine.student - students[tp_rank].start
    own_slots = own_rows * matrix.indices.shape[1] + cut.mine.slot
    arrays = (cut.owned, own_rows, cut.columns(), cut.mine.weight, own_slots)
    teacher_rows, local_rows, columns, weights, slots = (torch.as_tensor(a, device=student_head.device) for a in arrays)
    receive, receive_columns = cut.receive()
    num_columns = len(cut.owned) + sum(cut.send())
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
        plan=ScatterPlan.of(local_rows, columns, len(students[tp_rank]), num_columns),
        widths=Widths(max(len(rows) for rows in students), cut.widest),
    )


def shard_chain(
    matrix: ProjectionMatrix, student_head: Tensor, tp_group: dist.ProcessGroup | None = None
) -> ShardedProjection:
    """`shard_projection` of the first pieces, with all pieces of both sides, for `loss.chain`.

    Teacher tokens that no student token begins with lie with the column that they count as.
    Collectives: those of `shard_projection`, and one all-gather of a size. Raises ProjectionError where the projection
    does not say which pieces the tokens have.
    """
    matrix = matrix.first_pieces()
    cut = shard_projection(matrix, student_head, tp_group)
    students = np.arange(cut.student_rows.start, cut.student_rows.end)
    rank = 0 if cut.tp_group is None else cut.tp_group.rank()
    reached = cut.teacher_rows.cpu().numpy()
    chain = PieceChain.of(matrix, students, reached, rank, cut.tp_size, student_head.device)
    teacher_rows = torch.cat([cut.teacher_rows, chain.fold.ids])
    widest = max(gather_sizes(len(teacher_rows), cut.tp_group, student_head.device))
    return replace(cut, teacher_rows=teacher_rows, chain=chain, widths=replace(cut.widths, teacher=widest))


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

    def __init__(
        self, matrix: ProjectionMatrix, entries: _Entries, student_owner: Ids, tp_rank: int, tp_size: int
    ) -> None:
        self.tp_rank, self.tp_size = tp_rank, tp_size
        is_exact = matrix.exact_rows[entries.student]
        reached, reached_owner = place_columns(entries.teacher, student_owner, is_exact, tp_size)
        self.owned = reached[reached_owner == tp_rank]
        self.widest = int(np.bincount(reached_owner, minlength=tp_size).max())
        column_owner = reached_owner[np.searchsorted(reached, entries.teacher)]
        is_mine = student_owner == tp_rank
        self.mine, self.mine_owner = entries.of(is_mine), column_owner[is_mine]
        self.sent = unique_pairs(self.mine_owner, self.mine.teacher, self.mine_owner != tp_rank)
        self.received = unique_pairs(student_owner, entries.teacher, (column_owner == tp_rank) & ~is_mine)

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
