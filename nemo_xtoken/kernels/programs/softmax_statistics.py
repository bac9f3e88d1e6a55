"""The Triton programs of `kernels.softmax_statistics`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_xtoken.kernels.programs.launch import launch

BLOCK = 4096
"""Columns of a row that are read at a time."""


class RowStatistics(torch.autograd.Function):
    """Maximum, sum of exponentials, label's and chosen columns' values of each row, and their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, columns: Tensor | None, labels: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """logits [rows, local] -> [rows], [rows], [rows] or None, [rows, chosen] or None; all float32."""
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        places = None if columns is None else places_of(columns, logits.shape[1])
        num_chosen = 0 if columns is None else len(columns)
        labels = None if labels is None else labels.contiguous()
        maximum, total, label, chosen = row_statistics(logits, places, num_chosen, labels, temperature)
        ctx.save_for_backward(logits, places, labels, maximum)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(maximum)
        return maximum, total, label, chosen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The dense gradient of the logits, [rows, local] in their dtype."""
        logits, places, labels, maximum = ctx.saved_tensors
        _, total_grad, label_grad, chosen_grad = (None if grad is None else grad.contiguous() for grad in grads)
        assert total_grad is not None
        gradient = logits_gradient(
            logits, places, labels, maximum, total_grad, label_grad, chosen_grad, ctx.temperature
        )
        return gradient, None, None, None


def row_statistics(
    logits: Tensor, places: Tensor | None, num_chosen: int, labels: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Maximum, sum of exponentials, label's and chosen values of logits / temperature: [rows, local], columns adjacent.

    places  [local] int32, see `places_of`
    """
    maximum = logits.new_empty(len(logits), dtype=torch.float32)
    total = torch.empty_like(maximum)
    label = None if labels is None else torch.empty_like(maximum)
    chosen = None if places is None else maximum.new_empty(len(logits), num_chosen)
    launch(
        _row_statistics, (len(logits),),
        logits, places, labels, maximum, total, label, chosen, logits.shape[1], num_chosen, logits.stride(0),
        temperature, BLOCK=_block(logits.shape[1]), num_warps=8,
    )  # fmt: skip
    return maximum, total, label, chosen


def logits_gradient(
    logits: Tensor,
    places: Tensor | None,
    labels: Tensor | None,
    shift: Tensor,
    total_grad: Tensor,
    label_grad: Tensor | None,
    chosen_grad: Tensor | None,
    temperature: float,
) -> Tensor:
    """total_grad·exp(x - shift) plus the label's and the chosen columns' gradients, for x = logits / temperature.

    shift, total_grad, label_grad [rows]; chosen_grad [rows, chosen] -> [rows, local] in the dtype of the logits.
    """
    num_chosen = 0 if places is None or chosen_grad is None else chosen_grad.shape[1]
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    block = _block(logits.shape[1])
    launch(
        _logits_gradient, (len(logits), triton.cdiv(logits.shape[1], block)),
        logits, places, labels, shift, total_grad, label_grad, chosen_grad, gradient, logits.shape[1],
        num_chosen, logits.stride(0), temperature, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return gradient


def places_of(columns: Tensor, width: int) -> Tensor:
    """Where among the chosen columns each local column stands, -1 for the others: [chosen] -> [width] int32."""
    places = torch.full((width,), -1, dtype=torch.int32, device=columns.device)
    places[columns] = torch.arange(len(columns), dtype=torch.int32, device=columns.device)
    return places


def _block(width: int) -> int:
    return min(BLOCK, triton.next_power_of_2(max(width, 16)))


@triton.jit
def _row_statistics(
    logits, places, labels, maximum, total, label_values, chosen, width, num_chosen, stride, temperature,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row, a block of columns at a time, with the running maximum; places and labels may be None."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    largest = -float("inf")
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(logits + column, mask=column < width, other=-float("inf")).to(tl.float32) / temperature
        higher = tl.maximum(largest, tl.max(value, axis=0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        sums = sums * tl.exp(largest - shift) + tl.exp(value - shift)
        largest = higher
        if places is not None:
            place = tl.load(places + column, mask=column < width, other=-1)
            tl.store(chosen + row * num_chosen + place, value, mask=place >= 0)
    tl.store(maximum + row, largest)
    tl.store(total + row, tl.sum(sums, axis=0))
    if labels is not None:
        label = tl.load(labels + row)
        label_value = tl.load(logits + label, mask=label >= 0, other=0.0).to(tl.float32) / temperature
        tl.store(label_values + row, label_value)


@triton.jit
def _logits_gradient(
    logits, places, labels, maximum, total_grad, label_grad, chosen_grad, logits_grad, width, num_chosen, stride,
    temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of columns of one row; programs (row, block of columns); places and labels may be None."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    value = tl.load(logits + row * stride + column, mask=here, other=-float("inf")).to(tl.float32) / temperature
    largest = tl.load(maximum + row)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    grad = tl.load(total_grad + row) * tl.exp(value - shift)
    if places is not None:
        place = tl.load(places + column, mask=here, other=-1)
        grad += tl.load(chosen_grad + row * num_chosen + place, mask=place >= 0, other=0.0)
    if labels is not None:
        grad += tl.where(column == tl.load(labels + row), tl.load(label_grad + row), 0.0)
    grad = (grad / temperature).to(logits_grad.dtype.element_ty)
    tl.store(logits_grad + row * width + column, grad, mask=here)
