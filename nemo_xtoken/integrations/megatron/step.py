"""One training step's loss by Megatron's contract: sums over micro batches, divided once, by global counts.

    L = kd_weight · L_KD + ce_weight · (sum of token losses / N_tokens)
    L_KD = sum over teachers of weight · (sum of chunk losses / N_chunks), each with its own N_chunks

N_chunks and N_tokens are counted over all micro batches and data-parallel ranks before the forward pass, never over
tensor- or context-parallel ranks, which have the same batches. The sums themselves lie on the context-parallel ranks,
each chunk and each row on one, so they are added up over dp x cp. Megatron divides by N_tokens after the backward pass,
so a teacher's chunk sum goes in times kd_weight · weight · N_tokens / N_chunks.
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
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.teachers import SampleRange, Teacher, TeacherSettings, TeacherSource
from nemo_xtoken.types import DistillBatch, LossTerms

Report = dict[str, Tensor]
"""Sum and count, [2], of each metric of a micro batch."""

OF_THE_STUDENT = ("ce",)
"""Metrics that do not depend on a teacher."""


class Counts(NamedTuple):
    """What the losses of a global batch are divided by: the chunks of each teacher, and the tokens."""

    chunks: tuple[int, ...]
    tokens: int


def count_global_batch(micro_batches: Sequence[DistillBatch], losses: Sequence[LossConfig], layout: Layout) -> Counts:
    """What counts in the losses of all micro batches and data-parallel ranks. One all-reduce over dp.

    losses  of each teacher, whose filters decide which of its chunks count; the batches have a pair for each
    """
    chunks = [0] * len(losses)
    for batch in micro_batches:
        for i, (loss, pair) in enumerate(zip(losses, batch.pairs, strict=bool(losses))):
            chunks[i] += len(counted(pair.chunks, loss).mask)
    tokens = sum(int(batch.student_loss_mask.sum()) for batch in micro_batches)
    counts = torch.tensor([*chunks, tokens], device=layout.device)
    dist.all_reduce(counts, group=layout.groups.dp)
    *chunks, tokens = counts.tolist()
    return Counts(tuple(chunks), tokens)


@dataclass(frozen=True)
class Scales:
    """Factors of a micro batch's sums; the result is divided by the tokens of the global batch.

    kd  of each teacher's chunk losses, beside its weight; (): distillation is measured and has no part in the loss
    micro_batch_max_ratio  not None: `kd` is times the micro batch's own ratio of the losses, with this ceiling
    """

    kd: tuple[float, ...] = ()
    ce: float = 1.0
    micro_batch_max_ratio: float | None = None

    @classmethod
    def of(
        cls, counts: Counts, kd_weight: float, ce_weight: float, micro_batch_max_ratio: float | None = None
    ) -> Scales:
        """The scales that give L of this module; no valid chunk means no distillation term."""
        kd = (kd_weight * max(counts.tokens, 1) / chunks if chunks else 0.0 for chunks in counts.chunks)
        return cls(tuple(kd), ce_weight, micro_batch_max_ratio)


class StudentOutput(NamedTuple):
    """What the loss takes of the student: [b*s/cp, h] final hidden states and this rank's part of the head."""

    hidden: Tensor
    head: Tensor
    options: parallel.HeadOptions


class TeacherOutput:
    """One teacher on a micro batch: the pair of its sequences and the student's, and its final hidden states."""

    def __init__(self, teacher: Teacher, pair: DistillBatch) -> None:
        self.teacher, self.pair = teacher, pair
        self.hidden = teacher.hidden(pair)


@dataclass(frozen=True)
class Objective:
    """Runs the models on a micro batch and compares them.

    teachers    none: cross-entropy alone; with pipeline stages only the last one has them
    vocab_size  real ids of the student's head
    sources     where the teachers' hidden states come from, on every rank, also where there is no teacher
    """

    layout: Layout
    vocab_size: int
    teachers: tuple[Teacher, ...] = ()
    sources: tuple[TeacherSource, ...] = ()

    @property
    def learnt_projections(self) -> tuple[LearntProjection, ...]:
        """The W that are trained along with the student, as far as this rank has them."""
        learnt = (teacher.learnt_projection for teacher in self.teachers)
        return tuple(projection for projection in learnt if isinstance(projection, LearntProjection))

    def begin(self, announced: Callable[[], Iterator[SampleRange]]) -> None:
        """Tell each source what the calls of `prepare` will be for, in order; every rank must call it."""
        for source in self.sources:
            source.begin(announced())

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Tell the sources which micro batches come next; every rank must call it."""
        for i, source in enumerate(self.sources):
            source.prepare([batch.pairs[i] for batch in micro_batches])

    def close(self) -> None:
        """The run is over."""
        for source in self.sources:
            source.close()

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

        hidden: [b, s/cp, h] final hidden states of this cp rank, whole on every tp rank, in the head's type or, as
        Megatron's mixed precision hands them out, in float32.
        """
        gpt = unwrap(model)
        head = head_weight(gpt)
        student = StudentOutput(rows(hidden).to(head.dtype), head, head_options(gpt))
        outputs = [
            TeacherOutput(teacher, pair)
            for teacher, pair in zip(self.teachers, batch.pairs, strict=bool(self.teachers))
        ]
        kd_scales = scales.kd or (0.0,) * len(outputs)
        if scales.micro_batch_max_ratio is not None and outputs:
            ratio = self._micro_batch_ratio(scales.micro_batch_max_ratio, student, outputs)
            kd_scales = tuple(scale * ratio for scale in kd_scales)
        terms = self._compare(student, batch, outputs, kd_scales, scales.ce)
        num_tokens = terms[0].metrics["ce"].count.int()
        numerator = torch.stack([term.numerator for term in terms]).sum()
        return numerator, num_tokens, self._report(numerator, num_tokens, terms)

    def _compare(
        self,
        student: StudentOutput,
        batch: DistillBatch,
        outputs: Sequence[TeacherOutput],
        kd_scales: Sequence[float],
        ce_scale: float,
    ) -> list[LossTerms]:
        """The losses of each teacher, kd_scale times its weight, with cross-entropy in the first; or that alone.

        Each teacher's call makes the logits of the student anew, block by block, and has a gradient of the head of its
        own until the backward pass: the head's products and its gradient's memory are once for each teacher.
        """
        if not outputs:
            return [self._loss(student, None, batch, 0.0, ce_scale)]
        kd_scales = [scale * output.teacher.weight for scale, output in zip(kd_scales, outputs, strict=True)]
        ce_scales = [ce_scale, *[0.0] * (len(outputs) - 1)]
        return [
            self._loss(student, output, output.pair, kd, ce)
            for output, kd, ce in zip(outputs, kd_scales, ce_scales, strict=True)
        ]

    def _loss(
        self,
        student: StudentOutput,
        output: TeacherOutput | None,
        batch: DistillBatch,
        kd_scale: float,
        ce_scale: float,
    ) -> LossTerms:
        teacher = None if output is None else output.teacher
        return parallel.distillation_loss(
            student.hidden,
            student.head,
            None if output is None else output.hidden,
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
    def _micro_batch_ratio(self, max_ratio: float, student: StudentOutput, outputs: Sequence[TeacherOutput]) -> float:
        terms = self._compare(student, outputs[0].pair, outputs, [0.0] * len(outputs), 0.0)
        metrics = [terms[0].metrics["ce"], *(term.metrics["kd"] for term in terms)]
        sums = torch.stack([torch.stack([metric.total, metric.count]) for metric in metrics])
        dist.all_reduce(sums, group=self.layout.groups.cp)
        ce, *kd = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        total = sum(output.teacher.weight * mean for output, mean in zip(outputs, kd, strict=True))
        return balancing_ratio(total, ce, max_ratio)

    def _report(self, numerator: Tensor, num_tokens: Tensor, terms: Sequence[LossTerms]) -> Report:
        """The loss and all metrics; of several teachers, what is not of the student alone has the teacher's name.

        `kd` of a single teacher has its weight, as L_KD; of several see `with_total`.
        """
        loss = numerator.detach().clone()
        report = {"loss": torch.stack([loss, num_tokens.to(loss)])}
        names = [teacher.name for teacher in self.teachers] if len(terms) > 1 else [""]
        for name, term in zip(names, terms, strict=True):
            for metric, value in term.metrics.items():
                key = metric if metric in OF_THE_STUDENT or not name else f"{metric}/{name}"
                report.setdefault(key, torch.stack([value.total, value.count]).detach().clone())
        if len(self.teachers) == 1:
            report["kd"][0] *= self.teachers[0].weight
        return report


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


def with_total(means: Mapping[str, float | None], teachers: Sequence[TeacherSettings]) -> dict[str, float | None]:
    """Means of all that is reported, for several teachers with L_KD as `kd`: the sum of weight · L_KD of each.

    A teacher without a counted chunk has no part in it; without any it is None.
    """
    if len(teachers) < 2:
        return dict(means)
    parts = [(teacher.weight, means[f"kd/{teacher.name}"]) for teacher in teachers]
    counted_parts = [weight * mean for weight, mean in parts if mean is not None]
    total = {"kd": sum(counted_parts) if counted_parts else None}
    first = {name: means[name] for name in ("loss", *OF_THE_STUDENT)}
    return {**first, **total, **{name: mean for name, mean in means.items() if name not in {*first, *total}}}


def _of_last_stage(means: dict[str, float | None], stages: dist.ProcessGroup) -> dict[str, float | None]:
    if stages.size() == 1:
        return means
    shared = [means]
    dist.broadcast_object_list(shared, dist.get_global_rank(stages, stages.size() - 1), group=stages)
    return shared[0]
