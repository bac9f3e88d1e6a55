"""What does not fit together in the inputs of the distillation loss, in words, before anything is computed."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import ConfigError, LogitsError
from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection


def check_rows(
    side: str, hidden: object, head: Tensor | None, labels: Tensor, cp_group: dist.ProcessGroup | None
) -> None:
    """Raises LogitsError unless hidden is [rows, h] for labels [b, s], rows = b*s/cp, and head [V/tp, h] or None.

    Hidden that is no tensor has nothing to be checked.
    """
    if not isinstance(hidden, Tensor):
        return
    rows = labels.numel() // (1 if cp_group is None else cp_group.size())
    if hidden.dim() != 2 or not hidden.is_floating_point() or len(hidden) != rows:
        raise LogitsError(
            f"expected {side}_hidden [{rows}, h] in a float dtype, one row per token of this rank, got "
            f"{list(hidden.shape)} {hidden.dtype}: flatten [b, s, h] batch first"
        )
    if head is not None and (head.dim() != 2 or head.shape[1] != hidden.shape[1]):
        raise LogitsError(
            f"expected {side}_head [rows of the vocabulary, {hidden.shape[1]}] as {side}_hidden is "
            f"{list(hidden.shape)}, got {list(head.shape)}: head and hidden states must be of one model"
        )


def check_cut(pair: object, student_head: Tensor, tp_group: dist.ProcessGroup | None) -> None:
    """Raises ConfigError where W was cut for a group of another size, or for a longer shard of the student's head.

    W that is whole, or none, has nothing to be checked.
    """
    if not isinstance(pair, ShardedProjection | ShardedPartition):
        return
    tp_size = 1 if tp_group is None else tp_group.size()
    if pair.tp_size != tp_size:
        raise ConfigError(
            f"W was cut for {pair.tp_size} tensor-parallel ranks, tp_group has {tp_size}: "
            "cut it with shard_pair and the group that the loss is given"
        )
    if len(pair.student_rows) > len(student_head):
        raise ConfigError(
            f"W was cut for {len(pair.student_rows)} rows of the student's head on this rank, student_head has "
            f"{len(student_head)}: use the projection of this pair, cut for this head"
        )
