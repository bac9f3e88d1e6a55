"""Value and gradient of a loss on given logits, a block of chunks at a time, in one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from nemo_xtoken.losses.blocks import ChunkBlock, chunk_blocks
from nemo_xtoken.losses.chunk_sums import METRICS, ChunkSums
from nemo_xtoken.types import ChunkRows

MANY = 0.25
"""The share of columns from which on it is faster to take whole rows first."""


class Comparison(Protocol):
    """How some chunks of a micro batch are compared."""

    @property
    def chunks(self) -> ChunkRows:
        """The chunks, all valid."""
        ...

    @property
    def student_columns(self) -> Tensor | None:
        """The student's logits that matter, None for all: all others have gradient 0."""
        ...

    @property
    def teacher_columns(self) -> Tensor | None:
        """The teacher's logits that matter, None for all."""
        ...

    def sums(
        self, student_logits: Tensor, teacher_logits: Tensor, block: ChunkBlock, weights: Tensor | None
    ) -> ChunkSums:
        """The sums of one block, without the factor temperature²; logits [rows of the block, their columns]."""
        ...


def blockwise_sums(
    student_logits: Tensor,
    teacher_logits: Tensor,
    comparisons: Sequence[Comparison],
    vocab_sizes: tuple[int, int],
    block_rows: int | None,
    weights: Tensor | None = None,
) -> ChunkSums:
    """Sums over the chunks of all comparisons, each block's gradient formed in the forward and its logits dropped.

    Holds one block and the gradient. METRICS that the mode lacks are 0. Differentiable in student_logits [rows, V_S]
    and in weights, which every comparison is given, once: create_graph raises RuntimeError. The teacher's logits
    [teacher rows, V_T] are constants. Columns from vocab_sizes on, the student's and the teacher's, are padding. Sums
    are in float32, float64 for float64.
    """
    plan = _Plan(tuple(comparisons), vocab_sizes[0], block_rows)
    teacher_logits = teacher_logits[:, : vocab_sizes[1]].detach()
    loss, metrics = _applied(student_logits, teacher_logits, weights, plan)
    entropy, agreement, *masses = metrics.unbind()
    return ChunkSums(loss, entropy, agreement, (masses[0], masses[1]))


def _applied(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor | None, plan: _Plan
) -> tuple[Tensor, Tensor]:
    return cast("tuple[Tensor, Tensor]", _Blockwise.apply(student_logits, teacher_logits, weights, plan))  # pyright: ignore


@dataclass(frozen=True)
class _Plan:
    comparisons: tuple[Comparison, ...]
    student_vocab_size: int
    block_rows: int | None


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, weights: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(student_logits, teacher_logits, weights)
        ctx.plan = plan
        sums, ctx.gradients = _values_and_gradients(
            student_logits, teacher_logits, weights, plan, needs_grad=any(ctx.needs_input_grad)
        )
        loss, metrics = sums[0], sums[1:]
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: elsewhere in a sum, a constant gradient would go unnoticed
            raise RuntimeError("a loss on given logits can't differentiate twice: leave out create_graph=True")
        # The gradient is as large as the logits, so it is scaled in place and given away; under retain_graph another
        # backward forms it again. Without, saved_tensors raises torch's own error.
        student_logits, teacher_logits, weights = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _values_and_gradients(student_logits, teacher_logits, weights, ctx.plan, needs_grad=True)
        logits_grad, weights_grad = (None if gradient is None else gradient.mul_(grads[0]) for gradient in gradients)
        return logits_grad, None, weights_grad, None


def _values_and_gradients(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor | None, plan: _Plan, *, needs_grad: bool
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """The loss and METRICS, [1 + METRICS], and the loss's gradients in student_logits and weights."""
    sums = student_logits.new_zeros(1 + len(METRICS), dtype=_precision(student_logits))
    gradient = torch.zeros_like(student_logits) if needs_grad else None
    real_ids = slice(plan.student_vocab_size)
    weights_grad = torch.zeros_like(weights) if needs_grad and weights is not None else None
    for comparison in plan.comparisons:
        columns, teacher_columns = comparison.student_columns, comparison.teacher_columns
        width = _width(student_logits[:, real_ids], columns) + _width(teacher_logits, teacher_columns)
        for block in chunk_blocks(comparison.chunks, width, plan.block_rows):
            inputs = [_picked(student_logits[:, real_ids], block.student_rows, columns)]
            if weights is not None:
                inputs.append(weights.detach())
            teacher = _picked(teacher_logits, block.teacher_rows, teacher_columns)
            values, grads = _block(comparison, inputs, teacher, block, needs_grad)
            sums += values
            if gradient is not None:
                _put(gradient[:, real_ids], block.student_rows, columns, grads[0])
            if weights_grad is not None:
                weights_grad += grads[1]
    return sums, (gradient, weights_grad)


def _block(
    comparison: Comparison, inputs: list[Tensor], teacher_logits: Tensor, block: ChunkBlock, needs_grad: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and METRICS of a block, and the loss's gradients in the inputs: student logits, perhaps weights."""
    with torch.set_grad_enabled(needs_grad):
        inputs = [x.requires_grad_(needs_grad) for x in inputs]
        sums = comparison.sums(inputs[0], teacher_logits, block, inputs[1] if len(inputs) > 1 else None)
    grads = torch.autograd.grad(sums.loss, inputs) if needs_grad else ()
    metrics = sums.metrics()
    return torch.stack([sums.loss.detach(), *(metrics.get(n, sums.loss.new_zeros(())) for n in METRICS)]), grads


def _precision(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _width(logits: Tensor, columns: Tensor | None) -> int:
    return logits.shape[-1] if columns is None else len(columns)


def _picked(logits: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """Some rows and columns of the logits, detached, a copy in the precision of sums."""
    logits = logits.detach()
    if columns is None or len(columns) > MANY * logits.shape[-1]:
        picked = logits.index_select(0, rows)
        picked = picked if columns is None else picked.index_select(1, columns)
    else:
        picked = logits[rows[:, None], columns]
    return picked.to(_precision(logits))


def _put(gradient: Tensor, rows: Tensor, columns: Tensor | None, block_gradient: Tensor) -> None:
    block_gradient = block_gradient.to(gradient.dtype)
    if columns is None:
        gradient.index_copy_(0, rows, block_gradient)
    else:
        gradient[rows[:, None], columns] = block_gradient
