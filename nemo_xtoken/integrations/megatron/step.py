"""One training step's loss by Megatron's contract: sums over micro batches, divided once, by global counts.

    L = kd_weight · (sum of chunk losses / N_chunks) + ce_weight · (sum of token losses / N_tokens)

N_chunks and N_tokens are counted over all micro batches and data-parallel ranks before the forward pass, never over
tensor-parallel ranks, which see the same chunks. Megatron divides by N_tokens after the backward pass, so the chunk sum
goes in times kd_weight · N_tokens / N_chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken import parallel
from nemo_xtoken.config import LossConfig
from nemo_xtoken.integrations.megatron.attention_mask import document_mask
from nemo_xtoken.integrations.megatron.balance import balancing_ratio
from nemo_xtoken.integrations.megatron.head_tap import head_weight, rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.types import DistillBatch, LossTerms

Report = dict[str, Tensor]
"""Sum and count, [2], of each metric of a micro batch."""


class Counts(NamedTuple):
    """What the losses of a global batch are divided by."""

    chunks: int
    tokens: int


def count_global_batch(micro_batches: Sequence[DistillBatch], loss: LossConfig, layout: Layout) -> Counts:
    """What counts in the losses of all micro batches and data-parallel ranks. One all-reduce over dp x cp."""
    chunks = sum(len(counted(batch.chunks, loss).mask) for batch in micro_batches)
    tokens = sum(int(batch.student_loss_mask.sum()) for batch in micro_batches)
    counts = torch.tensor([chunks, tokens], device=layout.device)
    dist.all_reduce(counts, group=layout.groups.dp_cp)
    return Counts(*counts.tolist())


@dataclass(frozen=True)
class Scales:
    """Factors of a micro batch's sums; the result is divided by the tokens of the global batch.

    micro_batch_max_ratio  not None: `kd` is times the micro batch's own ratio of the losses, with this ceiling
    """

    kd: float
    ce: float
    micro_batch_max_ratio: float | None = None

    @classmethod
    def of(
        cls, counts: Counts, kd_weight: float, ce_weight: float, micro_batch_max_ratio: float | None = None
    ) -> Scales:
        """The scales that give L of this module; no valid chunk means no distillation term."""
        kd = kd_weight * max(counts.tokens, 1) / counts.chunks if counts.chunks else 0.0
        return cls(kd, ce_weight, micro_batch_max_ratio)


@dataclass(frozen=True)
class Objective:
    """Runs the models on a micro batch and compares them.

    teacher     None: cross-entropy alone; with pipeline stages only the last one has it
    vocab_size  real ids of the student's head
    """

    layout: Layout
    vocab_size: int
    teacher: ColocatedTeacher | None = None

    def forward_step(
        self, scales: Scales
    ) -> Callable[[Iterator[DistillBatch], Any], tuple[Tensor, Callable[..., Any]]]:
        """Megatron's `forward_step_func` for these scales."""
        return partial(self._forward, scales)

    def _forward(
        self, scales: Scales, micro_batches: Iterator[DistillBatch], model: Any
    ) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(micro_batches).to(self.layout.device)
        positions = batch.student_position_ids
        hidden = model(batch.student_tokens, positions, document_mask(positions))
        return hidden, partial(self.loss_func, scales, batch, model)

    def loss_func(
        self, scales: Scales, batch: DistillBatch, model: Any, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Report]:
        """Megatron's `loss_func`: loss sum, number of tokens it is over, and sums to report.

        hidden: [b, s, h] final hidden states, whole on every tp rank.
        """
        student = (rows(hidden), head_weight(_unwrap(model)))
        teacher_hidden = None if self.teacher is None else self.teacher.hidden(batch)
        kd_scale = scales.kd
        if scales.micro_batch_max_ratio is not None and teacher_hidden is not None:
            kd_scale *= self._micro_batch_ratio(scales.micro_batch_max_ratio, student, teacher_hidden, batch)
        terms = self._compare(student, teacher_hidden, batch, kd_scale, scales.ce)
        num_tokens = batch.student_loss_mask.sum().int()
        return terms.numerator, num_tokens, _report(terms, num_tokens)

    def _compare(
        self,
        student: tuple[Tensor, Tensor],
        teacher_hidden: Tensor | None,
        batch: DistillBatch,
        kd_scale: float,
        ce_scale: float,
    ) -> LossTerms:
        teacher = self.teacher
        return parallel.distillation_loss(
            *student,
            teacher_hidden,
            None if teacher is None else teacher.head,
            batch,
            None if teacher is None else teacher.pair,
            LossConfig() if teacher is None else teacher.loss,
            tp_group=self.layout.groups.tp,
            cp_group=self.layout.groups.cp,
            kd_scale=kd_scale,
            ce_scale=ce_scale,
            student_vocab_size=self.vocab_size,
        )

    @torch.no_grad()
    def _micro_batch_ratio(
        self, max_ratio: float, student: tuple[Tensor, Tensor], teacher_hidden: Tensor, batch: DistillBatch
    ) -> float:
        metrics = self._compare(student, teacher_hidden, batch, 1.0, 1.0).metrics
        kd, ce = (float(sums.total / sums.count.clamp(min=1)) for sums in (metrics["kd"], metrics["ce"]))
        return balancing_ratio(kd, ce, max_ratio)


def _report(terms: LossTerms, num_tokens: Tensor) -> Report:
    # Cloned: the schedule scales the loss it is given in place.
    sums = {name: torch.stack([value.total, value.count]).detach().clone() for name, value in terms.metrics.items()}
    loss = terms.numerator.detach().clone()
    return {**sums, "loss": torch.stack([loss, num_tokens.to(loss)])}


def sum_reports(
    reports: Sequence[Mapping[str, Tensor]], names: Sequence[str], layout: Layout
) -> dict[str, float | None]:
    """Global means of the metrics `names`, over micro batches and dp x cp, on every rank; None where nothing counted.

    One all-reduce over dp x cp, and a broadcast from the last pipeline stage, which alone has reports.
    """
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=layout.device)
    for report in reports:
        sums += torch.stack([report[name].double() for name in names])
    dist.all_reduce(sums, group=layout.groups.dp_cp)
    stages = layout.groups.pp
    if stages.size() > 1:
        dist.broadcast(sums, dist.get_global_rank(stages, stages.size() - 1), group=stages)
    return {name: total / count if count else None for name, (total, count) in zip(names, sums.tolist(), strict=True)}


def _unwrap(model: Any) -> Any:
    while hasattr(model, "module"):
        model = model.module
    return model
