"""What a distillation needs on this rank beside the student: teacher, W, balance, counts of the global batch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.data.manifest import Manifest, Side, TeacherSide
from nemo_xtoken.data.padding import Lengths, token_multiple
from nemo_xtoken.data.run_data import prepared_teachers
from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.fp8_backend import token_multiple_of
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.inputs import Inputs, data_key, file_key
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.projection_file import projection_file
from nemo_xtoken.integrations.megatron.step import (
    Counts,
    Objective,
    Scales,
    count_global_batch,
    sum_reports,
    with_total,
)
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.integrations.nemo.arithmetic import check_layout
from nemo_xtoken.integrations.nemo.config import DistillationConfig, NemoTeacher
from nemo_xtoken.integrations.nemo.data import PreparedDataModule
from nemo_xtoken.integrations.nemo.layout import check_trainer, layout_of
from nemo_xtoken.integrations.nemo.teachers import build_teacher
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.types import DistillBatch


@dataclass
class DistillationRun:
    """The state of a run besides what NeMo keeps itself.

    scales  those of the step that is going on
    means   global means of the last step, on every rank; None where nothing counted
    counts  the chunks and tokens of the step's global batch
    inputs  what the run was started with; a checkpoint of other inputs is refused
    lengths of the sequences of its micro batches, as FP8 needs them
    """

    config: DistillationConfig
    layout: Layout
    objective: Objective
    balance: Balance
    inputs: Inputs
    lengths: Lengths
    scales: Scales = field(default_factory=Scales)
    means: dict[str, float | None] = field(default_factory=dict)
    counts: Counts = field(default_factory=lambda: Counts((), 0))
    kd_weight: float = 0.0

    def begin(self, micro_batches: list[DistillBatch], models: Any, sizes: dict[str, Any]) -> None:
        """Set the scales of a training step; before the first one a forward pass measures the balance."""
        counts = self.counts = count_global_batch(micro_batches, self.config.losses, self.layout)
        if self.balance.needs_measuring and any(counts.chunks):
            means = self._measure(micro_batches, models, Scales.of(counts, 1.0, 1.0), sizes)
            self.balance.update(means["kd"], means["ce"] or 0.0)
        balance = self.balance.config
        ceiling = balance.max_ratio if balance.mode == "micro_batch" else None
        self.kd_weight = self.balance.kd_weight
        self.scales = Scales.of(counts, self.kd_weight, self.balance.ce_weight, ceiling)

    def end(self, reports: Any, step: int) -> None:
        """Take in the reports of a training step's micro batches, and step each W that is trained.

        One all-reduce over dp x cp, and a broadcast over pp. Raises XTokenError where the loss is no number any more.
        """
        self.end_validation(reports)
        loss = self.means["loss"] or 0.0
        if not math.isfinite(loss):
            raise XTokenError(f"the loss is {loss} at step {step}; lower the learning rate or warm up longer")
        for projection in self.objective.learnt_projections:
            projection.step(self.counts.tokens)
        if self.config.teachers:
            self.balance.update(self.means["kd"], self.means["ce"] or 0.0)

    def begin_validation(self) -> None:
        """Scales of a validation step: cross-entropy, beside which all that is reported is measured."""
        self.scales = Scales()

    def end_validation(self, reports: Any) -> None:
        """Take in the reports of a validation step."""
        self.means = with_total(sum_reports(reports, self.layout), self.config.teachers)

    def learnt_state_dict(self) -> dict[str, Any]:
        """Megatron's sharded tensors of each W that is trained, as far as this rank has them."""
        return {projection.name: projection.sharded_state_dict() for projection in self.objective.learnt_projections}

    def load_learnt_state_dict(self, loaded: dict[str, Any]) -> None:
        """Take in what `learnt_state_dict` asked for."""
        for projection in self.objective.learnt_projections:
            projection.load_state_dict(loaded[projection.name])

    def _measure(
        self, micro_batches: list[DistillBatch], models: Any, scales: Scales, sizes: dict[str, Any]
    ) -> dict[str, float | None]:
        chunks = models if isinstance(models, list) else [models]
        for model in chunks:
            model.eval()
        reports = get_forward_backward_func()(
            forward_step_func=self.objective.forward_step(scales),
            data_iterator=[iter(micro_batches) for _ in chunks],
            model=models,
            num_microbatches=len(micro_batches),
            forward_only=True,
            **sizes,
        )
        for model in chunks:
            model.train()
        return with_total(sum_reports(reports, self.layout), self.config.teachers)


def start_run(model: Any, trainer: Any) -> DistillationRun:
    """Build the teacher and cut W for a student that is in place. Every rank must call it. Raises XTokenError."""
    data = trainer.datamodule
    if not isinstance(data, PreparedDataModule):
        raise ConfigError(
            f"expected a PreparedDataModule as data, got {type(data).__name__}: the loss needs both token streams and "
            "their chunks"
        )
    check_trainer(trainer)
    config, layout, manifests = model.distillation, layout_of(trainer.strategy), data.manifests
    check(model, data, manifests[0])
    check_layout(model.config, config.teachers, data, trainer.strategy, dist.get_world_size())
    lengths = lengths_of(model, data, layout.parallel)
    data.data_sampler.seq_len = lengths.student  # of which pipeline stages take the shape of what they send
    teachers, teacher_inputs = _teachers(model, trainer, layout, manifests[0])
    objective = Objective(layout, manifests[0].student.vocab_size, teachers)
    inputs = {"data": data_key(manifests), **teacher_inputs}
    return DistillationRun(config, layout, objective, Balance(config.balance), inputs, lengths)


def lengths_of(model: Any, data: PreparedDataModule, parallel: ParallelConfig) -> Lengths:
    """How long sequences have to be for the FP8 of the student and its teachers."""
    settings = model.distillation.teachers
    sides = prepared_teachers(settings, data.manifests[0], data.config.parts[0].path)
    teachers = [
        (data.config.teacher_length(side.name), token_multiple(teacher.fp8))
        for teacher, side in zip(settings, sides, strict=True)
    ]
    return Lengths.needed((data.seq_length, token_multiple_of(model.config)), teachers, data.micro_batch_size, parallel)


def check(model: Any, data: PreparedDataModule, manifest: Manifest) -> None:
    """Raises ConfigError where model and data do not belong together."""
    if model.config.seq_length != data.seq_length:
        raise ConfigError(
            f"the student's seq_length is {model.config.seq_length}, the data's {data.seq_length}; change one of them"
        )
    ids, rows = manifest.student.vocab_size, model.config.vocab_size
    if rows is not None and rows < ids:
        raise ConfigError(
            f"the student's vocab_size {rows} is less than the {ids} ids of the data's student tokenizer; prepare the "
            "data with the student's own tokenizer"
        )
    if getattr(model.config, "fp4", None):
        raise ConfigError(
            f"the student's config has fp4={model.config.fp4}: sequences are padded, and the GPU is checked, for FP8 "
            "alone; take one of FP8's precisions or bf16"
        )
    if not model.config.calculate_per_token_loss:
        raise ConfigError("the student's config needs calculate_per_token_loss=True: losses are sums, divided once")


def _teachers(
    model: Any, trainer: Any, layout: Layout, manifest: Manifest
) -> tuple[tuple[ColocatedTeacher, ...], Inputs]:
    """The teachers where this rank has the student's head, and what they were read from."""
    inputs: Inputs = {}
    teachers: list[ColocatedTeacher] = []
    settings = model.distillation.teachers
    sides = prepared_teachers(settings, manifest, trainer.datamodule.config.parts[0].path)
    for teacher, side in zip(settings, sides, strict=True):
        loaded, key = _teacher(teacher, side, manifest.student, model, trainer, layout)
        inputs["projection" if len(settings) == 1 else f"projection of {teacher.name}"] = key
        if teacher.fp8 is not None:
            inputs[f"fp8 of {teacher.name}"] = json.dumps(dataclasses.asdict(teacher.fp8), sort_keys=True)
        teachers += [] if loaded is None else [loaded]
    return tuple(teachers), inputs


def _teacher(
    teacher: NemoTeacher, side: TeacherSide, student: Side, model: Any, trainer: Any, layout: Layout
) -> tuple[ColocatedTeacher | None, str]:
    projection = projection_file(teacher.projection, Path(trainer.default_root_dir), student, side)
    matrix = ProjectionMatrix.load(projection)
    matrix.check_pair(student.fingerprint, side.fingerprint)
    seq_length = trainer.datamodule.config.teacher_length(side.name)
    gpt = build_teacher(teacher, layout, student=model.config, side=side, seq_length=seq_length)
    if gpt is None:
        return None, file_key(projection)
    head = head_weight(unwrap(model))
    learnt = LearntProjection(teacher, matrix, head, layout) if teacher.learn_projection else None
    return ColocatedTeacher(teacher, gpt, matrix, head, layout, learnt), file_key(projection)
