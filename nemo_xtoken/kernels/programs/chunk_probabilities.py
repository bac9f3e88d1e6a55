"""The Triton programs of `kernels.chunk_probabilities`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_xtoken.kernels.chunk_probabilities import Runs
from nemo_xtoken.kernels.programs.launch import launch
from nemo_xtoken.kernels.programs.run_mean import run_means, run_of_rows
from nemo_xtoken.kernels.programs.softmax_statistics import logits_gradient, places_of, row_statistics
from nemo_xtoken.losses.vocabulary import Vocabulary

BLOCK = 2048
"""Columns that a program handles."""


class TritonProbabilities(torch.autograd.Function):
    """The same steps as the torch reference; what is needed again of a row is read again, not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        runs: Runs,
        vocabulary: Vocabulary,
        columns: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """As `chunk_probabilities`."""
        logits, labels = logits.contiguous(), labels.contiguous()
        places = None if columns is None else places_of(columns, logits.shape[1])
        num_chosen = 0 if columns is None else len(columns)
        local, total, label, chosen = row_statistics(logits, places, num_chosen, labels, temperature)
        assert label is not None
        maximum = vocabulary.maximum(local.unsqueeze(-1))
        normaliser = maximum + vocabulary.complete(total * (local - maximum).exp()).log()
        label_log = torch.where(labels >= 0, label - normaliser, 0.0)
        if chosen is None:
            means = run_means(logits, normaliser, runs.start, runs.end, temperature)
        else:
            chosen = chosen.sub_(normaliser.unsqueeze(-1)).exp_()
            means = runs.mean(chosen)
        ctx.save_for_backward(logits, labels, normaliser, places, chosen)
        ctx.runs, ctx.vocabulary, ctx.temperature = runs, vocabulary, temperature
        return label_log, means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        logits, labels, normaliser, places, chosen = ctx.saved_tensors
        label_grad, means_grad = torch.where(labels >= 0, grads[0], 0.0), grads[1].contiguous()
        if chosen is None:
            gradient = _dense(ctx, logits, labels, normaliser, label_grad, means_grad)
        else:
            products = ctx.runs.spread(means_grad, len(logits)) * chosen
            normaliser_grad = ctx.vocabulary.complete(-label_grad - products.sum(-1))
            gradient = logits_gradient(
                logits, places, labels, normaliser, normaliser_grad, label_grad, products, ctx.temperature
            )
        return gradient, None, None, None, None, None


def _dense(
    ctx: Any, logits: Tensor, labels: Tensor, normaliser: Tensor, label_grad: Tensor, means_grad: Tensor
) -> Tensor:
    rows, width = logits.shape
    block = min(BLOCK, triton.next_power_of_2(max(width, 16)))
    grid = (rows, triton.cdiv(width, block))
    runs = run_of_rows(rows, ctx.runs.start, ctx.runs.end)
    shared = (logits, normaliser, ctx.runs.start.contiguous(), ctx.runs.end.contiguous(), runs, means_grad)
    # Each program leaves its part of the row's sum: no atomics, the same result every time.
    partial = normaliser.new_empty(grid)
    launch(_run_products, grid, *shared, partial, width, logits.stride(0), ctx.temperature, BLOCK=block)
    normaliser_grad = ctx.vocabulary.complete(-label_grad - partial.sum(-1))
    gradient = torch.empty_like(logits)
    launch(
        _chunk_gradient, grid, *shared, normaliser_grad, labels, label_grad, gradient, width, logits.stride(0),
        ctx.temperature, BLOCK=block,
    )  # fmt: skip
    return gradient


@triton.jit
def _run_products(
    logits, normaliser, start, end, runs, means_grad, partial, width, stride, temperature, BLOCK: tl.constexpr
):
    """Sum over a block of columns of a row of probability times the gradient of its run's mean, divided by its length.

    Programs (row, block of columns).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    run = tl.load(runs + row)
    covered = column < tl.where(run >= 0, width, 0)
    length = tl.load(end + run, mask=run >= 0, other=1) - tl.load(start + run, mask=run >= 0, other=0)
    grad = tl.load(means_grad + run * width + column, mask=covered, other=0.0) / length.to(tl.float32)
    value = tl.load(logits + row * stride + column, mask=covered, other=0.0).to(tl.float32) / temperature
    product = tl.where(covered, grad * tl.exp(value - tl.load(normaliser + row)), 0.0)
    tl.store(partial + row * tl.num_programs(1) + tl.program_id(1), tl.sum(product, axis=0))


@triton.jit
def _chunk_gradient(
    logits, normaliser, start, end, runs, means_grad, normaliser_grad, labels, label_grad, logits_grad, width, stride,
    temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of columns of one row; programs (row, block of columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    run = tl.load(runs + row)
    here = column < width
    covered = column < tl.where(run >= 0, width, 0)
    length = tl.load(end + run, mask=run >= 0, other=1) - tl.load(start + run, mask=run >= 0, other=0)
    grad = tl.load(means_grad + run * width + column, mask=covered, other=0.0) / length.to(tl.float32)
    value = tl.load(logits + row * stride + column, mask=here, other=-float("inf")).to(tl.float32) / temperature
    grad = (grad + tl.load(normaliser_grad + row)) * tl.exp(value - tl.load(normaliser + row))
    grad += tl.where(column == tl.load(labels + row), tl.load(label_grad + row), 0.0)
    grad = (grad / temperature).to(logits_grad.dtype.element_ty)
    tl.store(logits_grad + row * width + column, grad, mask=here)
