"""The teacher columns of `teacher_top_k` when the columns are sharded."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.losses.projected_kl import top_columns as local_top_columns


def top_columns(column_maximum: Tensor, top_k: int, tp_group: dist.ProcessGroup | None) -> Tensor:
    """Local columns among the top_k largest of all ranks, ties at the threshold included.

    column_maximum  [owned] the largest logit of each local column
    Returns ascending local indices. One all-gather of [tp, top_k] values.
    """
    if tp_group is None:
        return local_top_columns(column_maximum, top_k)
    best = column_maximum.new_full((top_k,), -torch.inf)
    kept = min(top_k, len(column_maximum))
    best[:kept] = column_maximum.topk(kept).values
    candidates = best.new_empty(tp_group.size() * top_k)
    dist.all_gather_into_tensor(candidates, best, group=tp_group)
    threshold = candidates.topk(top_k).values[-1]
    return (column_maximum >= threshold).nonzero().squeeze(-1)
