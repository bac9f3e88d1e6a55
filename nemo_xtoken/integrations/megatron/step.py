"""One training step's loss by Megatron's contract: sums over micro batches, divided once, by global counts.

    L = kd_weight · (sum of chunk losses / N_chunks) + ce_weight · (sum of token losses / N_tokens)

N_chunks and N_tokens are counted over all micro batches and data-parallel ranks before the forward pass, never over
tensor- or context-parallel ranks, which have the same batches. The sums themselves lie on the context-parallel ranks,
each chunk and each row on one, so they are added up over dp x cp. Megatron divides by N_tokens after the backward pass,
so the chunk sum goes in times kd_weight · N_tokens / N_chunks.
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
from nemo_xtoken.integrations.megatron.balance import balancing_ratio
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight, rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.student import unwrap
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
    """What counts in the losses of all micro batches and data-parallel ranks. One all-reduce over dp."""
    chunks = sum(len(counted(batch.chunks, loss).mask) for batch in micro_batches)
    tokens = sum(int(batch.student_loss_mask.sum()) for batch in micro_batches)
    counts = torch.tensor([chunks, tokens], device=layout.device)
    dist.all_reduce(counts, group=layout.groups.dp)
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


class StudentOutput(NamedTuple):
    """What the loss takes of the student: [b*s/cp, h] final hidden states and this rank's part of the head."""

    hidden: Tensor
    head: Tensor
    options: parallel.HeadOptions


@dataclass(frozen=True)
class Objective:
    """Runs the models on a micro batch and compares them.

    teacher     None: cross-entropy alone; with pipeline stages only the last one has it
    vocab_size  real ids of the student's head
    """

    layout: Layout
    vocab_size: int
    teacher: ColocatedTeacher | None = None

    @property
    def learnt_projections(self) -> tuple[LearntProjection, ...]:
        """The W that are trained along with the student, as far as this rank has them."""
        learnt = None if self.teacher is None else self.teacher.learnt_projection
        return () if learnt is None else (learnt,)

    def forward_step(
        self, scales: Scales
    ) -> Callable[[Iterator[DistillBatch], Any], tuple[Tensor, Callable[..., Any]]]:
        """Megatron's `forward_step_func` for these scales."""
        return partial(self._forward, scales)

    def _forward(
        self, scales: Scales, micro_batches: Iterator[DistillBatch], model: Any
    ) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(micro_batches).to(self.layout.device)
        hidden = model(*model_inputs(batch.student_tokens, batch.student_position_ids, self.layout.groups.cp))
        return hidden, partial(self.loss_func, scales, batch, model)

    def loss_func(
        self, scales: Scales, batch: DistillBatch, model: Any, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Report]:
        """Megatron's `loss_func`: loss sum, number of tokens it is over, and sums to report.

        hidden: [b, s/cp, h] final hidden states of this cp rank, whole on every tp rank.
        """
        gpt = unwrap(model)
        student = StudentOutput(rows(hidden), head_weight(gpt), head_options(gpt))
        teacher_hidden = None if self.teacher is None else self.teacher.hidden(batch)
        kd_scale = scales.kd
        if scales.micro_batch_max_ratio is not None and teacher_hidden is not None:
            kd_scale *= self._micro_batch_ratio(scales.micro_batch_max_ratio, student, teacher_hidden, batch)
        terms = self._compare(student, teacher_hidden, batch, kd_scale, scales.ce)
        num_tokens = terms.metrics["ce"].count.int()
        return terms.numerator, num_tokens, _report(terms, num_tokens)

    def _compare(
        self,
        student: StudentOutput,
        teacher_hidden: Tensor | None,
        batch: DistillBatch,
        kd_scale: float,
        ce_scale: float,
    ) -> LossTerms:
        teacher = self.teacher
        return parallel.distillation_loss(
            student.hidden,
            student.head,
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
            weights=None if teacher is None else teacher.projection_weights(),
            student_options=student.options,
            teacher_options=parallel.HeadOptions() if teacher is None else teacher.head_options,
        )

    @torch.no_grad()
    def _micro_batch_ratio(
        self, max_ratio: float, student: StudentOutput, teacher_hidden: Tensor, batch: DistillBatch
    ) -> float:
        metrics = self._compare(student, teacher_hidden, batch, 1.0, 1.0).metrics
        sums = torch.stack([torch.stack([metrics[name].total, metrics[name].count]) for name in ("kd", "ce")])
        dist.all_reduce(sums, group=self.layout.groups.cp)
        kd, ce = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        return balancing_ratio(kd, ce, max_ratio)


def _report(terms: LossTerms, num_tokens: Tensor) -> Report:
    # Cloned: the schedule scales the loss it is given in place.
    sums = {name: torch.stack([value.total, value.count]).detach().clone() for name, value in terms.metrics.items()}
    loss = terms.numerator.detach().clone()
    return {"loss": torch.stack([loss, num_tokens.to(loss)]), **sums}


def sum_reports(reports: Sequence[Mapping[str, Tensor]], layout: Layout) -> dict[str, float | None]:
    """Global means of all that is reported, over micro batches and dp x cp, on every rank; None where nothing counted.

    Every report names the same metrics. One all-reduce over dp x cp, and a broadcast from the last pipeline stage,
    which alone has reports.
    """
    means: dict[str, float | None] = {}
    if layout.is_last_stage:
        names = list(reports[0])
        sums = torch.stack([torch.stack([report[name] for name in names]).double() for report in reports]).sum(0)
        dist.all_reduce(sums, group=layout.groups.dp_cp)
        means = {
            name: total / count if count else None for name, (total, count) in zip(names, sums.tolist(), strict=True)
        }
    return _of_last_stage(means, layout.groups.pp)


def _of_last_stage(means: dict[str, float | None], stages: dist.ProcessGroup) -> dict[str, float | None]:
    if stages.size() == 1:
        return means
    shared = [means]
    dist.broadcast_object_list(shared, dist.get_global_rank(stages, stages.size() - 1), group=stages)
    return shared[0]
