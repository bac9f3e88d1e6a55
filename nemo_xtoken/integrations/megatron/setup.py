"""Puts a run together on one rank: data, teacher, student, optimizer, and the place to go on from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_xtoken.config import BlendPart, LossConfig, ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.data.batches import GlobalBatches
from nemo_xtoken.data.manifest import Manifest, TeacherSide
from nemo_xtoken.data.padding import padded_for_fp8, padded_length, shares_layout, token_multiple
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import blended_dataset, check_lengths, check_same_tokenizers, prepared_teachers
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.cached_teacher import cached_source
from nemo_xtoken.integrations.megatron.checkpoint import Position, TrainingState
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.inputs import Inputs, data_key, file_key
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.optimizer import build_optimizer, build_schedule, wrap_data_parallel
from nemo_xtoken.integrations.megatron.own_layout_teacher import own_layout_source
from nemo_xtoken.integrations.megatron.projection_file import projection_file
from nemo_xtoken.integrations.megatron.remote_teacher import remote_source
from nemo_xtoken.integrations.megatron.step import Objective
from nemo_xtoken.integrations.megatron.student import build_student, load_parameters
from nemo_xtoken.integrations.megatron.teacher import ColocatedSource, load_teacher
from nemo_xtoken.integrations.megatron.worlds import Job
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.teachers import Teacher, TeacherSource
from nemo_xtoken.types import DistillBatch


@dataclass
class Training:
    """All that the loop works with.

    models  the student on this rank: one model, or one for each virtual pipeline stage
    start   where the loop begins or goes on
    """

    config: RunConfig
    layout: Layout
    models: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    balance: Balance
    objective: Objective
    state: TrainingState
    start: Position

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        """How the student is compared with each teacher."""
        return tuple(teacher.loss for teacher in self.config.teachers)

    def batches(self) -> GlobalBatches:
        """The training data from `start` on."""
        return _batches(self.config, self.layout, self.config.data.parts, self.start.consumed_samples)

    def padded(self, micro_batches: Sequence[DistillBatch]) -> list[DistillBatch]:
        """The same text in sequences that FP8 can multiply."""
        return [padded_for_fp8(batch, self.config) for batch in micro_batches]

    def validation_batches(self) -> Iterator[list[DistillBatch]] | None:
        """The first batches of the validation data, the same at every call; None without validation data."""
        path = self.config.data.validation_path
        return (
            None
            if path is None
            else _batches(self.config, self.layout, [BlendPart(path=path)], 0, first_part=len(self.config.data.parts))
        )


def set_up(config: RunConfig, layout: Layout, job: Job | None = None) -> Training:
    """Build everything and resume from the latest checkpoint. Raises XTokenError for what does not fit together."""
    manifests = [PreparedData.open(part.path).manifest for part in config.data.parts]
    manifest, first = manifests[0], config.data.parts[0].path
    for part, other in zip(config.data.parts, manifests, strict=True):
        check(config, part.path, other)
        check_same_tokenizers(config.teachers, part.path, other, first, manifest)
    check_lengths(config.data, manifests)
    if config.data.validation_path is not None:
        validation = PreparedData.open(config.data.validation_path).manifest
        check_same_tokenizers(config.teachers, config.data.validation_path, validation, first, manifest)
    ids = HeadIds(config.student.vocab_size or manifest.student.vocab_size, manifest.student.fingerprint)
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    student = build_student(config, layout, ids.size)
    head = head_weight(student[-1]) if layout.is_last_stage else None
    teachers, sources, teacher_inputs = _teachers(config, manifest, layout, head, dtype, job)
    models = [wrap_data_parallel(model, config) for model in student]
    optimizer = build_optimizer(models, config)
    schedule = build_schedule(optimizer, config.optimizer, config.train.steps)
    balance = Balance(config.balance)
    objective = Objective(layout, ids.size, teachers, sources)
    inputs = {"data": data_key(manifests), **teacher_inputs}
    state = TrainingState(
        Path(config.run_dir),
        layout,
        student,
        optimizer,
        schedule,
        balance,
        ids,
        inputs,
        objective.learnt_projections,
        in_background=config.train.async_save,
    )
    return Training(
        config=config,
        layout=layout,
        models=models,
        optimizer=optimizer,
        schedule=schedule,
        balance=balance,
        objective=objective,
        state=state,
        start=state.resume() or _begin(config, state),
    )


def _begin(config: RunConfig, state: TrainingState) -> Position:
    """The start of a run that has no checkpoint yet."""
    if config.student_checkpoint is not None:
        load_parameters(state.models, Path(config.student_checkpoint), state.ids)
        state.optimizer.reload_model_params()
    return Position(0, 0)


def check(config: RunConfig, path: str, manifest: Manifest) -> None:
    """Raises ConfigError or DataError where the config and the data at `path` do not belong together."""
    student_vocab = config.student.vocab_size
    if student_vocab is not None and student_vocab < manifest.student.vocab_size:
        raise ConfigError(
            f"student.vocab_size {student_vocab} is less than the {manifest.student.vocab_size} ids of the data's "
            "student tokenizer; raise it or set it to null"
        )
    teachers = prepared_teachers(config.teachers, manifest, path)
    check_length("data.student_sequence_length", config.data.student_sequence_length, config.parallel)
    for teacher, settings in zip(teachers, config.teachers, strict=True):
        own = any(entry.teacher == teacher.name for entry in config.data.teacher_lengths)
        key = f"the length of {teacher.name} in data.teacher_lengths" if own else "data.teacher_sequence_length"
        for parallel in (config.parallel, config.layout_of(settings)):
            check_length(key, config.data.teacher_length(teacher.name), parallel)
        if settings.kind != "cached" and not shares_layout(settings):
            length, layout = config.data.teacher_length(teacher.name), config.layout_of(settings)
            check_tokens(key, length, settings, layout, config.train.micro_batch_size)


def check_length(key: str, length: int, parallel: ParallelConfig) -> None:
    """Raises ConfigError for a sequence that can't be cut: in 2·cp parts, and a rank's two parts over tp."""
    cp_size = parallel.context_parallel_size
    tp_size = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    divisor = tp_size if cp_size == 1 else cp_size * math.lcm(2, tp_size)
    if length % divisor:
        raise ConfigError(
            f"{key} {length} must be divisible by {divisor} with context_parallel_size {cp_size} "
            f"and sequence parallelism over {tp_size} ranks; change one of them"
        )


def check_tokens(key: str, length: int, teacher: TeacherConfig, parallel: ParallelConfig, sequences: int) -> None:
    """Raises ConfigError for sequences that a teacher in FP8 can't multiply where they are not padded for it."""
    needed = padded_length(length, sequences, parallel, token_multiple(teacher.fp8))
    if length != needed:
        raise ConfigError(
            f"{key} {length} gives each rank of teacher {teacher.name!r} a number of tokens that is no multiple of "
            f"{token_multiple(teacher.fp8)}, which its FP8 needs; set it to {needed} or another multiple"
        )


def _teachers(
    config: RunConfig,
    manifest: Manifest,
    layout: Layout,
    student_head: torch.Tensor | None,
    dtype: torch.dtype,
    job: Job | None,
) -> tuple[tuple[Teacher, ...], tuple[TeacherSource, ...], Inputs]:
    """The teachers where this rank has the student's head, their sources on all ranks, and what they were read from."""
    inputs: Inputs = {}
    teachers: list[Teacher] = []
    sources: list[TeacherSource] = []
    prepared = prepared_teachers(config.teachers, manifest, config.data.parts[0].path)
    for number, (teacher, side) in enumerate(zip(config.teachers, prepared, strict=True)):
        projection = projection_file(teacher.projection, Path(config.run_dir), manifest.student, side)
        matrix = ProjectionMatrix.load(projection)
        matrix.check_pair(manifest.student.fingerprint, side.fingerprint)
        source, checkpoint = _source(config, number, side, layout, dtype, job)
        sources.append(source)
        suffix = f" of {teacher.name}" if len(config.teachers) > 1 else ""
        inputs |= {f"teacher checkpoint{suffix}": checkpoint, f"projection{suffix}": file_key(projection)}
        if student_head is not None:
            learnt = LearntProjection(teacher, matrix, student_head, layout) if teacher.learn_projection else None
            teachers.append(Teacher(teacher, source, matrix, student_head, layout.groups.tp, learnt))
    return tuple(teachers), tuple(sources), inputs


def _source(
    config: RunConfig, number: int, side: TeacherSide, layout: Layout, dtype: torch.dtype, job: Job | None
) -> tuple[TeacherSource, str]:
    """Where the hidden states of teacher `number` come from, and the name of the checkpoint that they are of."""
    teacher = config.teachers[number]
    if teacher.kind == "cached":
        return cached_source(config, teacher, layout, dtype)
    if teacher.kind == "remote":
        assert job is not None
        source, checkpoint = remote_source(config, number, side, layout, dtype, job)
        return source, checkpoint.name
    if teacher.parallel is not None:
        source, checkpoint = own_layout_source(config, number, side, layout, dtype)
        return source, checkpoint.name
    model, checkpoint = load_teacher(
        teacher,
        layout,
        tokenizer=side,
        max_sequence_length=config.data.teacher_length(side.name),
        params_dtype=dtype,
    )
    return ColocatedSource(model, layout), checkpoint.name


def _batches(
    config: RunConfig, layout: Layout, parts: Sequence[BlendPart], consumed_samples: int, first_part: int = 0
) -> GlobalBatches:
    dp, train = layout.groups.dp, config.train
    dataset = blended_dataset(config.data, config.teachers, parts, first_part)
    return GlobalBatches(
        dataset, train.micro_batch_size, train.global_batch_size, dp.rank(), dp.size(), consumed_samples
    )
