"""The partition into common and uncommon tokens when both vocabularies are sharded over tp.

A teacher row lies with the student row that it is paired with, so the KL on the common set needs no exchange; all other
teacher rows are dealt out so that every rank owns about as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.losses.partition import Partition, common_pairs, others
from nemo_xtoken.parallel.vocabulary import RowRange, Widths, range_of, student_ranges
from nemo_xtoken.projection.matrix import ProjectionMatrix


@dataclass(frozen=True)
class ShardedPartition:
    """One tp rank's part of a partition.

    student_rows  the rank's rows of the student's head, without padded ids
    teacher_rows  [owned] int64, ascending teacher ids whose columns this rank owns: the rows of its teacher head
    partition     in columns local to these two
    tp_size       ranks that the partition is cut for
    widths        student rows and teacher columns of the rank that has most
    """

    student_rows: RowRange
    teacher_rows: Tensor
    partition: Partition
    tp_size: int
    widths: Widths


def shard_partition(
    matrix: ProjectionMatrix, config: LossConfig, student_head: Tensor, tp_group: dist.ProcessGroup | None = None
) -> ShardedPartition:
    """Cut the partition of a loss mode for this rank: student_head is its shard [V_S/tp, h], contiguous, maybe uneven.

    Collectives: one all-gather of a size. Raises ConfigError where the head has fewer rows than W.
    """
    students = student_ranges(student_head, matrix.student_vocab_size, tp_group)
    tp_rank, device = 0 if tp_group is None else tp_group.rank(), student_head.device
    student, teacher = common_pairs(matrix, config)
    rest = others(matrix.teacher_vocab_size, teacher)
    pair_owner = range_of(students, student)
    is_mine = pair_owner == tp_rank
    held = np.bincount(pair_owner, minlength=len(students))
    rest_owner = _deal(len(rest), held)
    owned_rest = rest[rest_owner == tp_rank]
    owned = np.sort(np.concatenate([teacher[is_mine], owned_rest]))
    local_student = student[is_mine] - students[tp_rank].start
    arrays = (
        local_student,
        np.searchsorted(owned, teacher[is_mine]),
        others(len(students[tp_rank]), local_student),
        np.searchsorted(owned, owned_rest),
    )
    return ShardedPartition(
        student_rows=students[tp_rank],
        teacher_rows=torch.as_tensor(owned, device=device),
        partition=Partition(
            *(torch.as_tensor(array, device=device) for array in arrays),
            rest_length=min(matrix.student_vocab_size - len(student), len(rest)),
        ),
        tp_size=len(students),
        widths=Widths(
            max(len(rows) for rows in students),
            int((held + np.bincount(rest_owner, minlength=len(students))).max()),
        ),
    )


def _deal(count: int, held: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.int64]:
    """Rank of each of `count` items, so that with what every rank holds already all end up about even."""
    share = -(-(count + held.sum()) // len(held))
    room = np.maximum(share - held, 0)
    return np.repeat(np.arange(len(held)), room)[:count]
