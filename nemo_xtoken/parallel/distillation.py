"""The distillation loss from hidden states: both heads vocabulary-sharded, logits block by block, nothing gathered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.chunk_sums import ChunkSums
from nemo_xtoken.losses.cross_entropy import cross_entropy_per_row
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.vocabulary import log_softmax
from nemo_xtoken.parallel.blocks import Block, RowPlan
from nemo_xtoken.parallel.context import share_of_rank
from nemo_xtoken.parallel.heads import cut_head
from nemo_xtoken.parallel.pair import chunk_sums, shard_pair
from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection
from nemo_xtoken.parallel.top_columns import top_columns
from nemo_xtoken.parallel.vocabulary import RowRange, vocabulary_of
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch, LossTerms, Sum

Scale = float | Tensor
SUMS = ("ce", "kd", "teacher_entropy", "top_1_agreement")
"""Sums that blocks add up: cross-entropy over tokens, the others over chunks (see `losses.chunk_sums`)."""


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    batch: DistillBatch,
    matrix: ProjectionMatrix | ShardedProjection | ShardedPartition | None,
    config: LossConfig,
    tp_group: dist.ProcessGroup | None = None,
    cp_group: dist.ProcessGroup | None = None,
    *,
    kd_scale: Scale = 1.0,
    ce_scale: Scale = 0.0,
    student_vocab_size: int | None = None,
    weights: Tensor | None = None,
) -> LossTerms:
    """kd_scale·(sum of chunk losses·temperature²) + ce_scale·(sum of token cross-entropies) of one micro batch.

    student_hidden  [b*s, h_S] after the last norm, the same on every tp rank; gradient complete on every tp rank.
                    With cp_group: this rank's rows [b*s/cp, h_S], each sequence's in the order of `context_positions`
    student_head    [V_S/tp, h_S] shard, contiguous in tp rank order; shards may be uneven; gradient of the shard
    teacher_hidden  [b*t, h_T] ([b*t/cp, h_T]) likewise; None with teacher_head and matrix: cross-entropy alone
    batch           the whole micro batch, the same on every rank of tp_group and cp_group
    matrix          W, cut by `shard_pair` for config.mode; or whole, and then cut at every call
    teacher_head    with W cut: its `teacher_rows` [owned, h_T], see `cut_head`;
                    with W whole: [V_T/tp, h_T] shard, contiguous in tp rank order, may be uneven
    student_vocab_size  real ids of the head, by default W's; later rows are padding: no probability, zero gradient
    weights         learnable W, P-KL only: [local rows of W, K] in the place of the cut W's weights, see
                    `ShardedProjection`; differentiable, its gradient complete on this rank but for dp and cp

    Returns LossTerms: numerator differentiable in student_hidden and student_head, denominator the number of counted
    chunks (of counted tokens without a teacher), metrics `ce` over tokens, `kd`, `teacher_entropy` (nats) and
    `top_1_agreement` over chunks, `chunk_tokens` (student tokens in counted chunks) over tokens; the same on every tp
    rank. Over cp every chunk and row counts on one rank. Numerators and denominators are summed over dp and cp, never
    over tp, before they are divided.

    Value and gradient are computed together, `config.block_rows` rows at a time, then the block's logits are dropped.
    Accumulation is in float32 (float64 for float64 input). Collectives over tp, each of one number per row or chunk
    unless said: per block the softmax maximum and sum (and the sum's backward) of both sides; for P-KL the projected
    mass (and its backward) and one exchange of projected values with its reverse; for GOLD, H-KL and ULD one exchange
    of [c, sorted_cap] values a side, with the student's reverse; for strict top-k an all-gather of [tp, c, k]; for
    `first` and `last` merges of these the labels' log-probabilities. Per call: the values, the hidden gradient
    [rows, h_S] and, with `teacher_top_k`, an all-gather of [tp, top_k] column maxima. Over cp: the hidden rows that
    chunks lack, see `share_of_rank`, and with `teacher_top_k` the column maxima.
    Raises ConfigError for heads or a cut that do not fit W or the mode, and for sequences that cp can't cut.
    """
    _check(teacher_hidden, teacher_head, matrix)
    tp_group, cp_group = (None if group is None or group.size() == 1 else group for group in (tp_group, cp_group))
    if cp_group is not None:
        student_hidden, teacher_hidden, batch = share_of_rank(student_hidden, teacher_hidden, batch, cp_group)
    teacher = None
    if teacher_hidden is not None and teacher_head is not None and matrix is not None:
        teacher = _Teacher.of(teacher_hidden, teacher_head, matrix, config, student_head, tp_group)
        rows = teacher.pair.student_rows
        rows = rows if student_vocab_size is None else rows.clip(student_vocab_size)
    else:
        ranges = RowRange.of_head(student_head, tp_group)
        rows = ranges[0 if tp_group is None else tp_group.rank()].clip(student_vocab_size or ranges[-1].end)
    task = _Task(batch, teacher, rows, config, tp_group, cp_group, kd_scale, ce_scale)
    if weights is not None and not isinstance(matrix, ShardedProjection):
        raise ConfigError("learnable weights need W cut by shard_projection, and a loss mode that projects: 'p_kl'")
    numerator, sums = _BlockwiseLoss.apply(student_hidden, student_head, weights, task)  # pyright: ignore
    return task.terms(numerator, sums)


def _check(*teacher: object) -> None:
    given = [x is not None for x in teacher]
    if any(given) and not all(given):
        raise ConfigError("teacher_hidden, teacher_head and matrix belong together: give all three or none")


@dataclass(frozen=True)
class _Teacher:
    """The frozen side: hidden states, this rank's rows of the head, and its part of the pair."""

    hidden: Tensor
    head: Tensor
    pair: ShardedProjection | ShardedPartition

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        head: Tensor,
        matrix: ProjectionMatrix | ShardedProjection | ShardedPartition,
        config: LossConfig,
        student_head: Tensor,
        tp_group: dist.ProcessGroup | None,
    ) -> _Teacher:
        if isinstance(matrix, ProjectionMatrix):
            matrix = shard_pair(matrix, config, student_head, tp_group)
            return cls(hidden.detach(), cut_head(head, matrix, tp_group), matrix)
        if isinstance(matrix, ShardedProjection) != (config.mode in ("p_kl", "same_tokenizer")):
            raise ConfigError(f"W was cut for another loss mode than {config.mode!r}: cut it with shard_pair")
        if len(head) != len(matrix.teacher_rows):
            raise ConfigError(
                f"teacher_head has {len(head)} rows, this rank of W owns {len(matrix.teacher_rows)}: "
                "cut the head with cut_head"
            )
        return cls(hidden.detach(), head.detach(), matrix)

    def logits(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """Logits of the given rows on this rank's columns, or on those selected: -> [rows, columns]."""
        head = self.head if columns is None else self.head.index_select(0, columns)
        return _accumulated(self.hidden.index_select(0, rows) @ head.t())


@dataclass(frozen=True)
class _Task:
    """All that the loss of a micro batch needs besides what it is differentiated in."""

    batch: DistillBatch
    teacher: _Teacher | None
    rows: RowRange
    config: LossConfig
    tp_group: dist.ProcessGroup | None
    cp_group: dist.ProcessGroup | None
    kd_scale: Scale
    ce_scale: Scale

    def chunks(self) -> ChunkRows:
        """The chunks that count, none without a teacher."""
        chunks = counted(self.batch.chunks, self.config)
        return chunks if self.teacher is not None else chunks.masked(torch.zeros_like(chunks.mask)).valid()

    def teacher_columns(self, plan: RowPlan) -> Tensor | None:
        """The columns of `teacher_top_k` among this rank's, None for all."""
        top_k = self.config.teacher_top_k
        if self.teacher is None or top_k is None or self.config.mode != "p_kl":
            return None
        maximum = _accumulated(self.teacher.head.new_full((len(self.teacher.head),), -torch.inf))
        for rows in plan.teacher_rows.split(self.config.block_rows):
            if len(rows):
                maximum = torch.maximum(maximum, self.teacher.logits(rows, None).amax(0))
        if self.cp_group is not None:
            dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.cp_group)
        return top_columns(maximum, top_k, self.tp_group)

    def block_values(
        self, logits: Tensor, block: Block, columns: Tensor | None, own_weights: Tensor | None
    ) -> tuple[ChunkSums | None, Tensor]:
        """This rank's partial sums over chunks, None without a teacher, and of the cross-entropies.

        logits [rows, local real ids]; own_weights [entries] of learnable W
        """
        vocabulary, config = vocabulary_of(self.tp_group), self.config
        log_probs = log_softmax(logits, vocabulary)
        labels = self.rows.local(block.labels)
        ce = cross_entropy_per_row(log_probs, labels, block.mask).sum()
        if self.teacher is None:
            return None, ce
        if config.temperature != 1:
            log_probs = log_softmax(logits, vocabulary, config.temperature)
        teacher_logits = self.teacher.logits(block.teacher_rows, columns)
        pair = self.teacher.pair if own_weights is None else replace(self.projection(), weights=own_weights)
        sums = chunk_sums(
            pair, log_probs, labels, teacher_logits, block.teacher_labels, block.chunks, columns, config,
            vocabulary,
        )  # fmt: skip
        return sums, ce

    def projection(self) -> ShardedProjection:
        """This rank's part of W, in a mode that projects."""
        assert self.teacher is not None
        assert isinstance(self.teacher.pair, ShardedProjection)
        return self.teacher.pair

    def terms(self, numerator: Tensor, sums: Tensor) -> LossTerms:
        """The weighted sum and the `SUMS` with what they are divided by."""
        tokens = self.batch.student_loss_mask.sum().to(numerator.dtype)
        ce, *of_chunks = sums.unbind()
        if self.teacher is None:
            return LossTerms(numerator, tokens, {"ce": Sum(ce, tokens)})
        chunks = self.chunks()
        number = numerator.new_tensor(float(len(chunks.mask)))
        in_chunks = (chunks.student_end - chunks.student_start).sum().to(numerator.dtype)
        metrics = {name: Sum(value, number) for name, value in zip(SUMS[1:], of_chunks, strict=True)}
        return LossTerms(numerator, number, {"ce": Sum(ce, tokens), **metrics, "chunk_tokens": Sum(in_chunks, tokens)})


class _BlockwiseLoss(torch.autograd.Function):
    """Value and gradient in one pass over the blocks; backward only scales."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, weights: Tensor | None, task: _Task) -> tuple[Tensor, Tensor]:
        plan = RowPlan.of(task.batch, task.chunks())
        columns = task.teacher_columns(plan)
        accumulator = _Accumulator(hidden, head, weights, task, any(ctx.needs_input_grad))
        for block in plan.blocks(task.config.block_rows):
            accumulator.add(block, columns)
        numerator, sums = accumulator.values()
        ctx.mark_non_differentiable(sums)
        ctx.gradients = accumulator.gradients()
        return numerator, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None
        # In place: the head's gradient is the largest tensor of the loss.
        return *(None if gradient is None else gradient.mul_(grads[0]) for gradient in gradients), None


class _Accumulator:
    """Sums of values and gradients over the blocks of a micro batch."""

    def __init__(self, hidden: Tensor, head: Tensor, weights: Tensor | None, task: _Task, needs_grad: bool) -> None:
        self.hidden, self.head, self.task, self.needs_grad = hidden, head[: len(task.rows)], task, needs_grad
        self.weights, self.own_weights = weights, None
        if weights is not None:
            self.own_weights = weights.flatten().index_select(0, task.projection().slots).requires_grad_(needs_grad)
        self.sums = _accumulated(hidden.new_zeros(len(SUMS)))
        self.hidden_grad = _accumulated(torch.zeros_like(hidden)) if needs_grad else None
        self.head_grad = _accumulated(torch.zeros_like(head)) if needs_grad else None
        self.own_weights_grad = None if self.own_weights is None else torch.zeros_like(self.own_weights)

    def add(self, block: Block, columns: Tensor | None) -> None:
        """One block: logits, values and, where asked for, the gradient; nothing of it is kept."""
        rows = self.hidden.index_select(0, block.student_rows)
        logits = _accumulated(rows @ self.head.t())
        with torch.set_grad_enabled(self.needs_grad):
            logits.requires_grad_(self.needs_grad)
            chunks, ce = self.task.block_values(logits, block, columns, self.own_weights)
            kd = ce.new_zeros(()) if chunks is None else chunks.loss * self.task.config.temperature**2
            partial = self.task.kd_scale * kd + self.task.ce_scale * ce
        metrics = [kd, kd] if chunks is None else [chunks.teacher_entropy, chunks.top_1_agreement]
        self.sums += torch.stack([ce.detach(), kd.detach(), *metrics])
        if self.hidden_grad is not None and self.head_grad is not None:
            inputs = (logits,) if self.own_weights is None else (logits, self.own_weights)
            logits_grad, *weights_grad = torch.autograd.grad(partial, inputs)
            logits_grad = logits_grad.to(self.head.dtype)
            self.hidden_grad[block.student_rows] = _accumulated(logits_grad @ self.head)
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
        """Gradients of hidden states, summed over tp, of the head's shard and of W's rows, in the dtypes of these."""
        if self.hidden_grad is None or self.head_grad is None:
            return None, None, None
        if self.task.tp_group is not None:
            dist.all_reduce(self.hidden_grad, group=self.task.tp_group)
        return self.hidden_grad.to(self.hidden.dtype), self.head_grad.to(self.head.dtype), self._weights_grad()

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
        total += _accumulated(left @ right)


def _accumulated(x: Tensor) -> Tensor:
    """x in the precision of sums: float32, or float64 where x is."""
    return x if x.dtype == torch.float64 else x.float()
