"""A micro batch's hidden states in parts, one on each tensor-parallel rank of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def of_all_tp_ranks(part: Tensor, sizes: Sequence[int], tp_group: dist.ProcessGroup) -> Tensor:
    """[rows, h] of a micro batch from the parts that each rank of the student's tp group has. One all-gather over tp.

    sizes: rows of each part
    """
    if len(sizes) == 1:
        return part
    padded = part.new_zeros(max(sizes), part.shape[1])
    padded[: len(part)] = part
    gathered = part.new_empty(len(sizes) * len(padded), part.shape[1])
    dist.all_gather_into_tensor(gathered, padded, group=tp_group)
    parts = gathered.view(len(sizes), *padded.shape)
    return torch.cat([rows[:size] for rows, size in zip(parts, sizes, strict=True)])
