"""Value and gradient of a micro batch's loss, a block of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.parallel.blocks import Block
from nemo_xtoken.parallel.logits import logits_of, product_gradient
from nemo_xtoken.parallel.memory import slabs
from nemo_xtoken.parallel.task import SUMS, Task


class BlockwiseLoss(torch.autograd.Function):
    """Value and gradient in one pass over the blocks; backward only scales."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, weights: Tensor | None, task: Task
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of both losses, differentiable in all inputs but the task, and the `SUMS`."""
        rows = Block.of(task.batch, task.chunks(), task.chain)
        task = task.on_top_columns(rows.teacher_rows, task.sizes(head))
        accumulator = _Accumulator(hidden, head, bias, weights, task, any(ctx.needs_input_grad))
        for block, _, _ in rows.split(task.sizes(head).block):
            accumulator.add(block)
        numerator, sums = accumulator.values()
        ctx.mark_non_differentiable(sums)
        ctx.gradients = accumulator.gradients()
        return numerator, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of `forward`'s inputs, once."""
        gradients, scale = ctx.gradients, grads[0]
        ctx.gradients = None
        # The head's gradient is the largest tensor of the loss: in place, and not at all where that can be seen
        # without waiting for a device.
        if scale.is_cuda or scale.item() != 1:
            gradients = [None if gradient is None else gradient.mul_(scale) for gradient in gradients]
        return *gradients, None


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
        self.dtype = accumulated(hidden[:0]).dtype
        self.scratch = _Scratch(hidden.new_empty(0, dtype=self.dtype))
        self.sums = hidden.new_zeros(len(SUMS), dtype=self.dtype)
        self.hidden_grad = torch.zeros_like(hidden, dtype=self.dtype) if needs_grad else None
        # The first block's product fills it: a pass over the largest tensor less.
        self.head_grad = torch.empty_like(head, dtype=self.dtype) if needs_grad else None
        self.is_first = True
        self.bias_grad = None if bias is None else torch.zeros_like(bias, dtype=self.dtype)
        self.own_weights_grad = None if self.own_weights is None else torch.zeros_like(self.own_weights)

    def add(self, block: Block) -> None:
        """One block: logits, values and, where asked for, the gradient; nothing of it is kept."""
        teacher, rows = self.task.teacher, self.hidden.index_select(0, block.student_rows)
        logits = self.scratch.take("student", len(rows), len(self.head))
        logits_of(rows, self.head, self.options, logits)
        teacher_logits = None
        if teacher is not None:
            teacher_logits = self.scratch.take("teacher", len(block.teacher_rows), teacher.width)
            teacher.logits(block.teacher_rows, teacher_logits)
        for tile, student, teachers in block.split(self.task.sizes(self.head).tile):
            self._tile(logits[student], None if teacher_logits is None else teacher_logits[teachers], tile)
        if self.needs_grad:
            self._add_gradients(block, rows, logits)

    def _tile(self, logits: Tensor, teacher_logits: Tensor | None, tile: Block) -> None:
        """Values of some rows of a block; where a gradient is wanted it takes the place of their logits."""
        leaf = logits.detach().requires_grad_(self.needs_grad)
        with torch.set_grad_enabled(self.needs_grad):
            chunks, ce = self.task.values(leaf, teacher_logits, tile, self.own_weights)
            kd = ce.new_zeros(()) if chunks is None else chunks.loss * self.task.config.temperature**2
            partial = self.task.kd_scale * kd + self.task.ce_scale * ce
        metrics = {"ce": ce.detach(), "kd": kd.detach(), **({} if chunks is None else chunks.metrics())}
        self.sums += torch.stack([metrics.get(name, ce.new_zeros(())) for name in SUMS])
        if self.needs_grad:
            inputs = (leaf,) if self.own_weights is None else (leaf, self.own_weights)
            gradient, *weights_grad = torch.autograd.grad(partial, inputs)
            logits.copy_(product_gradient(gradient, logits, self.options))
            if self.own_weights_grad is not None:
                self.own_weights_grad += weights_grad[0]

    def _add_gradients(self, block: Block, rows: Tensor, product_grad: Tensor) -> None:
        """The block's part of all gradients, from that at hidden·weightᵀ + bias, [rows, local]."""
        assert self.hidden_grad is not None
        assert self.head_grad is not None
        if self.bias_grad is not None:
            self.bias_grad[: len(self.head)] += product_grad.sum(0)
        product_grad = product_grad.to(self.head.dtype)
        self.hidden_grad[block.student_rows] = accumulated(product_grad @ self.head)
        _add_product(self.head_grad[: len(self.head)], product_grad.t(), rows, self.is_first)
        self.is_first = False

    def values(self) -> tuple[Tensor, Tensor]:
        """The weighted sum of both losses and all `SUMS`, summed over tp in one all-reduce."""
        if self.task.tp_group is not None:
            dist.all_reduce(self.sums, group=self.task.tp_group)
        ce, kd = self.sums[:2]
        return self.task.kd_scale * kd + self.task.ce_scale * ce, self.sums

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, summed over tp, of head and bias shards, and of W's rows, in their dtypes."""
        self.scratch.clear()
        if self.hidden_grad is None or self.head_grad is None:
            return None, None, None, None
        self.head_grad[0 if self.is_first else len(self.head) :] = 0
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


class _Scratch:
    """Memory that every block uses again."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int) -> Tensor:
        """[rows, width], not initialised, valid until the next call with this name."""
        if name not in self.held or self.held[name].numel() < rows * width:
            self.held.pop(name, None)
            self.held[name] = self.like.new_empty(rows * width)
        return self.held[name][: rows * width].view(rows, width)

    def clear(self) -> None:
        """Give everything back."""
        self.held.clear()


def _add_product(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    """total += left @ right, or = for the first; where the precision is another one by slabs of rows."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)
        return
    for slab in slabs(len(total), right.shape[1] * (total.element_size() + left.element_size())):
        product = left[slab] @ right
        total[slab] = product if is_first else total[slab] + product
