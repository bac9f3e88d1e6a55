"""The Triton programs of `kernels.run_mean`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_xtoken.kernels.programs.launch import launch

BLOCK = 2048
"""Columns that a program handles."""


class RunMean(torch.autograd.Function):
    """Mean over the rows of each run of logits / temperature or, with a normaliser, of exp of it less that."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_normaliser: Tensor | None, start: Tensor, end: Tensor, temperature: float
    ) -> Tensor:
        """logits [rows, local], log_normaliser [rows] -> [c, local] float32."""
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        log_normaliser = None if log_normaliser is None else log_normaliser.contiguous()
        start, end = start.contiguous(), end.contiguous()
        means = run_means(logits, log_normaliser, start, end, temperature)
        ctx.save_for_backward(logits, log_normaliser, start, end)
        ctx.temperature = temperature
        return means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        """Gradients of the logits, [rows, local] in their dtype, and of the normaliser."""
        logits, log_normaliser, start, end = ctx.saved_tensors
        rows, width = logits.shape
        logits_grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        block = _block(width)
        grid = (rows, triton.cdiv(width, block))
        # Each program leaves its part of the row's sum: no atomics, the same result every time.
        partial = None if log_normaliser is None else logits.new_empty(grid, dtype=torch.float32)
        launch(
            _run_gradient, grid,
            logits, log_normaliser, start, end, run_of_rows(rows, start, end), grads[0].contiguous(), logits_grad,
            partial, width, logits.stride(0), ctx.temperature, BLOCK=block,
        )  # fmt: skip
        normaliser_grad = None if partial is None else partial.sum(-1)
        return logits_grad, normaliser_grad, None, None, None


def run_means(logits: Tensor, log_normaliser: Tensor | None, start: Tensor, end: Tensor, temperature: float) -> Tensor:
    """`RunMean.forward` without its gradient; columns of the logits are adjacent."""
    width = logits.shape[1]
    means = logits.new_empty(len(start), width, dtype=torch.float32)
    block = _block(width)
    launch(
        _run_means, (len(start), triton.cdiv(width, block)),
        logits, log_normaliser, start.contiguous(), end.contiguous(), means, width, logits.stride(0), temperature,
        BLOCK=block,
    )  # fmt: skip
    return means


def run_of_rows(rows: int, start: Tensor, end: Tensor) -> Tensor:
    """The run that each row lies in, -1 for none, without waiting for the device: [c], [c] -> [rows] int64."""
    if len(start) == 0:
        return torch.full((rows,), -1, device=start.device)
    row = torch.arange(rows, device=start.device)
    run = torch.searchsorted(end, row, right=True).clamp_max(len(end) - 1)
    return torch.where((start[run] <= row) & (row < end[run]), run, -1)


def _block(width: int) -> int:
    return min(BLOCK, triton.next_power_of_2(max(width, 16)))


@triton.jit
def _run_means(logits, log_normaliser, start, end, means, width, stride, temperature, BLOCK: tl.constexpr):
    """Mean of a block of columns over a run; programs (run, block of columns); log_normaliser may be None."""
    run = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(start + run)
    last = tl.load(end + run)
    at = logits + first * stride + column
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(first, last):
        value = tl.load(at, mask=column < width, other=0.0).to(tl.float32) / temperature
        if log_normaliser is not None:
            value = tl.exp(value - tl.load(log_normaliser + row))
        total += value
        at += stride
    tl.store(means + run * width + column, total / (last - first).to(tl.float32), mask=column < width)


@triton.jit
def _run_gradient(
    logits, log_normaliser, start, end, runs, means_grad, logits_grad, partial, width, stride, temperature,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of columns of one row; programs (row, block of columns); log_normaliser may be None."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    run = tl.load(runs + row)
    covered = column < tl.where(run >= 0, width, 0)
    length = tl.load(end + run, mask=run >= 0, other=1) - tl.load(start + run, mask=run >= 0, other=0)
    grad = tl.load(means_grad + run * width + column, mask=covered, other=0.0) / length.to(tl.float32)
    if log_normaliser is not None:
        value = tl.load(logits + row * stride + column, mask=covered, other=0.0).to(tl.float32) / temperature
        grad = tl.where(covered, grad * tl.exp(value - tl.load(log_normaliser + row)), 0.0)
        tl.store(partial + row * tl.num_programs(1) + tl.program_id(1), tl.sum(-grad, axis=0))
    grad = (grad / temperature).to(logits_grad.dtype.element_ty)
    tl.store(logits_grad + row * width + column, grad, mask=column < width)
