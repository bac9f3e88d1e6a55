"""The Triton programs of `kernels.sparse_projection`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_xtoken.kernels.programs.launch import launch
from nemo_xtoken.kernels.sparse_projection import SHORT, Grouping, ScatterPlan

ROWS = 4
"""Rows that share one read of the entries; few enough that theirs of x stay in the L2 cache."""


class ScatterColumns(torch.autograd.Function):
    """y[:, columns[e]] += weights[e]·x[:, rows[e]], and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, plan: ScatterPlan) -> Tensor:
        """x [c, in], weights [entries] -> [c, columns of the plan]."""
        x = _with_adjacent_columns(x)
        ctx.plan = plan
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weights)
        return grouped_sum(x, weights, plan.by_column)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and of weights."""
        x, weights = ctx.saved_tensors
        grad = _with_adjacent_columns(grads[0])
        x_grad = grouped_sum(grad, weights, ctx.plan.by_row) if ctx.needs_input_grad[0] else None
        if x is None:
            return x_grad, None, None
        return x_grad, entry_products(x, grad, ctx.plan).to(weights.dtype), None


def grouped_sum(x: Tensor, weights: Tensor, grouping: Grouping) -> Tensor:
    """y[r, j] = sum over the entries e of target j of weights[e]·x[r, source of e]: [c, in] -> [c, targets]."""
    num_targets = len(grouping.starts) - 1
    y = x.new_empty(len(x), num_targets)
    if y.numel() == 0:
        return y
    ordered = weights.index_select(0, grouping.order)
    block, row_tiles = 256, triton.cdiv(len(x), ROWS)
    shared = (x, y, grouping.starts, grouping.sources, ordered)
    sizes = (len(x), x.stride(0), y.stride(0))
    grid = (triton.cdiv(num_targets, block), row_tiles)
    launch(_sum_short, grid, *shared, num_targets, *sizes, SHORT=SHORT, ROWS=ROWS, BLOCK=block)
    if len(grouping.long):
        launch(_sum_long, (len(grouping.long), row_tiles), *shared, grouping.long, *sizes, ROWS=ROWS, BLOCK=64)
    return y


def entry_products(x: Tensor, y_grad: Tensor, plan: ScatterPlan) -> Tensor:
    """Gradient of each entry's weight, sum over r of x[r, row]·y_grad[r, column]: -> [entries] float32."""
    products = x.new_empty(len(plan.rows), dtype=torch.float32)
    block = 128
    launch(
        _entry_products, (triton.cdiv(len(products), block),),
        x, y_grad, plan.rows, plan.columns, products, len(products), len(x), x.stride(0), y_grad.stride(0),
        ROWS=8, BLOCK=block,
    )  # fmt: skip
    return products


def _with_adjacent_columns(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


@triton.jit
def _sum_short(
    x, y, starts, sources, weights, num_targets, num_rows, x_stride, y_stride,
    SHORT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Targets of at most SHORT entries, one entry of each at a time; programs (block of targets, tile of rows)."""
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    first = tl.load(starts + target, mask=target < num_targets, other=0)
    count = tl.load(starts + target + 1, mask=target < num_targets, other=0) - first
    is_short = count <= SHORT
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    rounds = tl.max(tl.where(is_short, count, 0), axis=0)
    for place in range(rounds):  # pyright: ignore[reportArgumentType]
        taken = is_short & (place < count)
        source = tl.load(sources + first + place, mask=taken, other=0)
        weight = tl.load(weights + first + place, mask=taken, other=0.0)
        at = x + row.to(tl.int64) * x_stride + source[None, :]
        value = tl.load(at, mask=(row < num_rows) & taken[None, :], other=0.0)
        total += weight[None, :].to(tl.float32) * value.to(tl.float32)
    written = (row < num_rows) & (is_short & (target < num_targets))[None, :]
    tl.store(y + row.to(tl.int64) * y_stride + target[None, :], total.to(y.dtype.element_ty), mask=written)


@triton.jit
def _sum_long(
    x, y, starts, sources, weights, long_targets, num_rows, x_stride, y_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One target of many entries, BLOCK of them at a time; programs (long target, tile of rows)."""
    target = tl.load(long_targets + tl.program_id(0))
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    last = tl.load(starts + target + 1)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(tl.load(starts + target), last, BLOCK):
        place = first + tl.arange(0, BLOCK)
        source = tl.load(sources + place, mask=place < last, other=0)
        weight = tl.load(weights + place, mask=place < last, other=0.0)
        at = x + row[:, None].to(tl.int64) * x_stride + source[None, :]
        value = tl.load(at, mask=(row < num_rows)[:, None] & (place < last)[None, :], other=0.0)
        total += weight[None, :].to(tl.float32) * value.to(tl.float32)
    summed = tl.sum(total, axis=1).to(y.dtype.element_ty)
    tl.store(y + row.to(tl.int64) * y_stride + target, summed, mask=row < num_rows)


@triton.jit
def _entry_products(
    x, y_grad, rows, columns, products, num_entries, num_rows, x_stride, y_grad_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products of BLOCK entries, summed over ROWS rows at a time; programs (block of entries)."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = (entry < num_entries)[None, :]
    source = tl.load(rows + entry, mask=entry < num_entries, other=0)[None, :]
    target = tl.load(columns + entry, mask=entry < num_entries, other=0)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, num_rows, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        taken = (row < num_rows) & here
        value = tl.load(x + row * x_stride + source, mask=taken, other=0.0).to(tl.float32)
        total += value * tl.load(y_grad + row * y_grad_stride + target, mask=taken, other=0.0).to(tl.float32)
    tl.store(products + entry, tl.sum(total, axis=0), mask=entry < num_entries)
