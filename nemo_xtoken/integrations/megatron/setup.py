"""Puts a run together on one rank: data, teacher, student, optimizer, and the place to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_xtoken.config import LossConfig, RunConfig
from nemo_xtoken.data.batches import GlobalBatches
from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.checkpoint import Position, TrainingState
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.inputs import Inputs, data_key, file_key
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.models import build_gpt
from nemo_xtoken.integrations.megatron.optimizer import build_optimizer, build_schedule, wrap_data_parallel
from nemo_xtoken.integrations.megatron.step import Objective
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher, load_teacher
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.types import DistillBatch


@dataclass
class Training:
    """All that the loop works with. `start` is where it begins or goes on."""

    config: RunConfig
    layout: Layout
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    balance: Balance
    objective: Objective
    state: TrainingState
    start: Position

    @property
    def loss(self) -> LossConfig:
        """How the models are compared; without a teacher it decides nothing."""
        return self.config.teachers[0].loss if self.config.teachers else LossConfig()

    def batches(self) -> GlobalBatches:
        """The training data from `start` on."""
        return _batches(self.config, self.layout, self.config.data.path, self.start.consumed_samples)

    def validation_batches(self) -> Iterator[list[DistillBatch]] | None:
        """The first batches of the validation data, the same at every call; None without validation data."""
        path = self.config.data.validation_path
        return None if path is None else _batches(self.config, self.layout, path, 0)


def set_up(config: RunConfig, layout: Layout) -> Training:
    """Build everything and resume from the latest checkpoint. Raises XTokenError for what does not fit together."""
    manifest = PreparedData.open(config.data.path).manifest
    check(config, manifest)
    check_validation_data(config, manifest)
    ids = HeadIds(config.student.vocab_size or manifest.student.vocab_size, manifest.student.fingerprint)
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    student = build_gpt(
        config.student,
        config.parallel,
        vocab_size=ids.size,
        max_sequence_length=config.data.student_sequence_length,
        device=config.device,
        seed=config.train.seed,
        params_dtype=dtype,
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
    ).to(layout.device)
    head = head_weight(student) if layout.is_last_stage else None
    teacher, teacher_inputs = _teacher(config, manifest, layout, head, dtype) if config.teachers else (None, {})
    model = wrap_data_parallel(student, config)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config.optimizer, config.train.steps)
    balance = Balance(config.balance)
    inputs = {"data": data_key(manifest), **teacher_inputs}
    state = TrainingState(Path(config.run_dir), layout, student, optimizer, schedule, balance, ids, inputs)
    return Training(
        config=config,
        layout=layout,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        balance=balance,
        objective=Objective(layout, ids.size, teacher),
        state=state,
        start=state.resume() or Position(0, 0),
    )


def check(config: RunConfig, manifest: Manifest) -> None:
    """Raises ConfigError or DataError where config and data do not belong together."""
    tp_size = config.parallel.tensor_model_parallel_size
    student_vocab = config.student.vocab_size
    if student_vocab is not None and student_vocab < manifest.student.vocab_size:
        raise ConfigError(
            f"student.vocab_size {student_vocab} is less than the {manifest.student.vocab_size} ids of the data's "
            "student tokenizer; raise it or set it to null"
        )
    if len(config.teachers) > 1:
        raise ConfigError(f"expected at most one teacher in this version, got {len(config.teachers)}")
    if config.teachers and manifest.teacher is None:
        raise DataError(
            f"{config.data.path} was prepared without a teacher; prepare it with --teacher, or set teachers=[]"
        )
    lengths = {"student": config.data.student_sequence_length}
    if config.teachers:
        lengths["teacher"] = config.data.teacher_sequence_length
    for side, length in lengths.items():
        if config.parallel.sequence_parallel and length % tp_size:
            raise ConfigError(
                f"data.{side}_sequence_length {length} must be divisible by tensor_model_parallel_size {tp_size} "
                "with sequence_parallel; change one of them"
            )


def check_validation_data(config: RunConfig, manifest: Manifest) -> None:
    """Raises DataError where the validation data is of other tokenizers than the training data, or has no teacher."""
    path = config.data.validation_path
    if path is None:
        return
    validation = PreparedData.open(path).manifest
    pairs = [("student", manifest.student, validation.student)]
    pairs += [("teacher", manifest.teacher, validation.teacher)] if config.teachers else []
    for name, trained_on, validated_on in pairs:
        if trained_on is None or validated_on is None or trained_on.fingerprint != validated_on.fingerprint:
            raise DataError(
                f"{path} was not prepared with the {name} tokenizer of {config.data.path}; prepare it with that"
            )


def _teacher(
    config: RunConfig, manifest: Manifest, layout: Layout, student_head: torch.Tensor | None, dtype: torch.dtype
) -> tuple[ColocatedTeacher | None, Inputs]:
    """The teacher where this rank has the student's head, and what it was read from."""
    (teacher,) = config.teachers
    assert manifest.teacher is not None
    matrix = ProjectionMatrix.load(teacher.projection)
    matrix.check_pair(manifest.student.fingerprint, manifest.teacher.fingerprint)
    model, checkpoint = load_teacher(
        teacher,
        layout,
        tokenizer=manifest.teacher,
        max_sequence_length=config.data.teacher_sequence_length,
        params_dtype=dtype,
    )
    inputs = {"teacher checkpoint": checkpoint.name, "projection": file_key(teacher.projection)}
    if model is None or student_head is None:
        return None, inputs
    return ColocatedTeacher(model, matrix, teacher.loss, student_head, layout), inputs


def _batches(config: RunConfig, layout: Layout, path: str, consumed_samples: int) -> GlobalBatches:
    data = config.data
    dataset = PackedDataset(
        PreparedData.open(path),
        data.student_sequence_length,
        data.teacher_sequence_length,
        data.seed,
        data.exact_chunks_only,
    )
    dp = layout.groups.dp
    train = config.train
    return GlobalBatches(
        dataset, train.micro_batch_size, train.global_batch_size, dp.rank(), dp.size(), consumed_samples
    )
