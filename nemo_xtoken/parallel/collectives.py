"""The collectives of the loss, differentiable where the loss needs it.

Convention: every rank's loss value is its *partial* value, and the loss is the sum over ranks. Under it a sum over
ranks has a sum over ranks as its backward, and an exchange has the reverse exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


def _all_to_all(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    received = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), list(receive), list(send), group=group)
    return received


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum of x over the group, on every rank; differentiable. One all-reduce forward, one backward."""
    total: Tensor = _SumOverRanks.apply(x, group)  # pyright: ignore[reportAssignmentType]
    return total


def exchange_rows(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of x [sum(send), ...] go to the ranks in order, `send[r]` to rank r; differentiable.

    Returns [sum(receive), ...], rank 0's rows first. One all-to-all forward, one backward.
    """
    received: Tensor = _ExchangeRows.apply(x, send, receive, group)  # pyright: ignore[reportAssignmentType]
    return received


def gather_sizes(size: int, group: dist.ProcessGroup | None, device: torch.device) -> list[int]:
    """Every rank's size, in rank order. One all-gather of a single integer."""
    if group is None:
        return [size]
    sizes = torch.zeros(group.size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], device=device), group=group)
    return [int(value) for value in sizes.tolist()]
