"""A teacher's head, cut for the student's tensor-parallel group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.parallel.pair import ShardedPair
from nemo_xtoken.parallel.vocabulary import RowRange, check_head_rows


def cut_head(teacher_head: Tensor, pair: ShardedPair, teacher_group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of a teacher's head that this rank of the student's tp group owns: -> [owned, h], detached.

    teacher_head   this rank's shard [V_T/teacher tp, h] of a contiguously sharded head; shards may be uneven
    teacher_group  the teacher's own tp group; None where the head is whole
    Collectives: an all-gather of sizes and one broadcast of each shard; done once, at the start of a run.
    Raises ConfigError where the head has fewer rows than W was built for.
    """
    ranges, teacher_rows = RowRange.of_head(teacher_head, teacher_group), pair.teacher_rows
    check_head_rows("teacher", ranges[-1].end, int(teacher_rows.max()) + 1 if len(teacher_rows) else 0)
    teacher_head = teacher_head.detach()
    if teacher_group is None or len(ranges) == 1:
        return teacher_head.index_select(0, teacher_rows)
    cut = teacher_head.new_empty(len(teacher_rows), teacher_head.shape[1])
    for rank, shard_range in enumerate(ranges):
        is_mine = rank == teacher_group.rank()
        shard = teacher_head.clone() if is_mine else teacher_head.new_empty(len(shard_range), teacher_head.shape[1])
        dist.broadcast(shard, dist.get_global_rank(teacher_group, rank), group=teacher_group)
        local = shard_range.local(teacher_rows)
        cut[local >= 0] = shard[local[local >= 0]]
    return cut
