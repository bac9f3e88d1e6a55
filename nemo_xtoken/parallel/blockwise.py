"""Value and gradient of a micro batch's loss, a block of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.parallel.blocks import Block, RowPlan
from nemo_xtoken.parallel.logits import logits_of, product_gradient
from nemo_xtoken.parallel.task import SUMS, Task


class BlockwiseLoss(torch.autograd.Function):
    """Value and gradient in one pass over the blocks; backward only scales."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, weights: Tensor | None, task: Task
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of both losses, differentiable in all inputs but the task, and the `SUMS`."""
        plan = RowPlan.of(task.batch, task.chunks())
        columns = task.teacher_columns(plan)
        accumulator = _Accumulator(hidden, head, bias, weights, task, any(ctx.needs_input_grad))
        for block in plan.blocks(task.config.block_rows):
            accumulator.add(block, columns)
        numerator, sums = accumulator.values()
        ctx.mark_non_differentiable(sums)
        ctx.gradients = accumulator.gradients()
        return numerator, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `forward`'s inputs, once."""
        gradients = ctx.gradients
        ctx.gradients = None
        # In place: the head's gradient is the largest tensor of the loss.
        return *(None if gradient is None else gradient.mul_(grads[0]) for gradient in gradients), None


class _Accumulator:
    """Sums of values and gradients over the blocks of a micro batch."""

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        weights: Tensor | None,
        task: Task,
        needs_grad: bool,
    ) -> None:
        self.hidden, self.head, self.task, self.needs_grad = hidden, head[: len(task.rows)], task, needs_grad
        self.bias, self.options = bias, task.student_options.of_rows(slice(len(task.rows)))
        self.weights, self.own_weights = weights, None
        if weights is not None:
            self.own_weights = weights.flatten().index_select(0, task.projection().slots).requires_grad_(needs_grad)
        self.sums = accumulated(hidden.new_zeros(len(SUMS)))
        self.hidden_grad = accumulated(torch.zeros_like(hidden)) if needs_grad else None
        self.head_grad = accumulated(torch.zeros_like(head)) if needs_grad else None
        self.bias_grad = None if bias is None else accumulated(torch.zeros_like(bias))
        self.own_weights_grad = None if self.own_weights is None else torch.zeros_like(self.own_weights)

    def add(self, block: Block, columns: Tensor | None) -> None:
        """One block: logits, values and, where asked for, the gradient; nothing of it is kept."""
        rows = self.hidden.index_select(0, block.student_rows)
        logits = logits_of(rows, self.head, self.options).detach()
        with torch.set_grad_enabled(self.needs_grad):
            logits.requires_grad_(self.needs_grad)
            chunks, ce = self.task.block_values(logits, block, columns, self.own_weights)
            kd = ce.new_zeros(()) if chunks is None else chunks.loss * self.task.config.temperature**2
            partial = self.task.kd_scale * kd + self.task.ce_scale * ce
        metrics = {"ce": ce.detach(), "kd": kd.detach(), **({} if chunks is None else chunks.metrics())}
        self.sums += torch.stack([metrics.get(name, ce.new_zeros(())) for name in SUMS])
        if self.hidden_grad is not None and self.head_grad is not None:
            inputs = (logits,) if self.own_weights is None else (logits, self.own_weights)
            logits_grad, *weights_grad = torch.autograd.grad(partial, inputs)
            logits_grad = product_gradient(logits_grad, logits.detach(), self.options)
            if self.bias_grad is not None:
                self.bias_grad[: len(self.head)] += logits_grad.sum(0)
            logits_grad = logits_grad.to(self.head.dtype)
            self.hidden_grad[block.student_rows] = accumulated(logits_grad @ self.head)
            _add_product(self.head_grad[: len(self.head)], logits_grad.t(), rows)
            if self.own_weights_grad is not None:
                self.own_weights_grad += weights_grad[0]

    def values(self) -> tuple[Tensor, Tensor]:
        """The weighted sum of both losses and all `SUMS`, summed over tp in one all-reduce."""
        if self.task.tp_group is not None:
            dist.all_reduce(self.sums, group=self.task.tp_group)
        ce, kd = self.sums[:2]
        return self.task.kd_scale * kd + self.task.ce_scale * ce, self.sums

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, summed over tp, of head and bias shards, and of W's rows, in their dtypes."""
        if self.hidden_grad is None or self.head_grad is None:
            return None, None, None, None
        if self.task.tp_group is not None:
            dist.all_reduce(self.hidden_grad, group=self.task.tp_group)
        bias_grad = None if self.bias is None or self.bias_grad is None else self.bias_grad.to(self.bias.dtype)
        hidden_grad, head_grad = self.hidden_grad.to(self.hidden.dtype), self.head_grad.to(self.head.dtype)
        return hidden_grad, head_grad, bias_grad, self._weights_grad()

    def _weights_grad(self) -> Tensor | None:
        if self.weights is None or self.own_weights_grad is None:
            return None
        gradient = torch.zeros_like(self.weights).flatten()
        gradient[self.task.projection().slots] = self.own_weights_grad
        return gradient.view_as(self.weights)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary where the precision is the same."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += accumulated(left @ right)
