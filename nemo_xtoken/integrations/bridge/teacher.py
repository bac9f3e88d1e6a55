"""Teachers, each built by its own provider when the student is there and not yet wrapped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from nemo_xtoken.data.manifest import Side, TeacherSide
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.limits import refuse_teacher
from nemo_xtoken.integrations.bridge.models import adapt, provider_from
from nemo_xtoken.integrations.megatron.fp8_backend import transformer_fields
from nemo_xtoken.integrations.megatron.head_tap import tap_head
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.projection_file import projection_file
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.whole_file import whole_file


def build_teachers(
    config: DistillationContainer, layout: Layout, student_head: torch.Tensor | None
) -> tuple[ColocatedTeacher, ...]:
    """The teachers where this rank has the student's head, else none. Every rank must call it."""
    student = config.dataset.manifest().student
    built = [
        _build_teacher(config, teacher, student, side, layout, student_head)
        for teacher, side in zip(config.teachers, config.dataset.sides(), strict=True)
    ]
    return tuple(teacher for teacher in built if teacher is not None)


def _build_teacher(
    config: DistillationContainer,
    teacher: BridgeTeacher,
    student: Side,
    side: TeacherSide,
    layout: Layout,
    student_head: torch.Tensor | None,
) -> ColocatedTeacher | None:
    model = build_model(config, teacher, layout, config.dataset.data.teacher_length(side.name))
    folder = Path(config.checkpoint.save or ".")
    folder.mkdir(parents=True, exist_ok=True)
    projection = projection_file(teacher.projection, folder, student, side)
    matrix = ProjectionMatrix.load(projection)
    matrix.check_pair(student.fingerprint, side.fingerprint)
    if teacher.learn_projection and config.checkpoint.save is not None:
        _keep(projection, initial_projection_path(folder, teacher.name))
    if student_head is None:
        return None
    learnt = LearntProjection(teacher, matrix, student_head, layout) if teacher.learn_projection else None
    return ColocatedTeacher(teacher, model, matrix, student_head, layout, learnt)


def initial_projection_path(folder: Path, teacher: str) -> Path:
    """The file of what a W that is trained was before, beside the checkpoints."""
    return folder / f"initial-projection-{teacher}.safetensors"


def _keep(projection: Path, kept: Path) -> None:
    """Copy it once. A checkpoint has the parameters of these entries alone: raises ConfigError for another file."""
    if dist.get_rank() == 0 and not kept.exists():
        with whole_file(kept) as unfinished:
            shutil.copyfile(projection, unfinished)
    dist.barrier()
    if kept.read_bytes() != projection.read_bytes():
        raise ConfigError(
            f"the run in {kept.parent} was started with another projection than {projection}, that of {kept}; "
            "name that one or another checkpoint.save"
        )


def build_model(config: DistillationContainer, teacher: BridgeTeacher, layout: Layout, seq_length: int) -> GPTModel:
    """The teacher's model, frozen, in eval mode, with its head tapped. Every rank must call it.

    It is whole on every pipeline stage while its weights are read, since Bridge's conversion talks to all of them, and
    is kept on the last one.
    """
    provider: Any = teacher.provider or provider_from(teacher.model)
    student = config.model
    options = {
        "tensor_model_parallel_size": student.tensor_model_parallel_size,
        "sequence_parallel": student.sequence_parallel,
        "context_parallel_size": student.context_parallel_size,
        "params_dtype": student.params_dtype,
        "bf16": student.bf16,
        "fp16": student.fp16,
        "autocast_dtype": student.params_dtype,
        "attention_backend": student.attention_backend,  # megatron-core keeps it in the process's environment
    }
    for name, value in {**options, **teacher.options}.items():
        setattr(provider, name, value)
    if provider.fp8:
        raise ConfigError(
            f"teacher {teacher.name!r}: its provider, or its options, has fp8={provider.fp8}; say it in the teacher's "
            "own fp8, by which its sequences are padded"
        )
    for name, value in transformer_fields(teacher.fp8).items():
        setattr(provider, name, value)
    provider.pipeline_model_parallel_size = 1
    provider.virtual_pipeline_model_parallel_size = None
    provider.pipeline_dtype = None
    provider.seq_length = seq_length
    refuse_teacher(teacher.name, provider, student)
    adapt(provider, layout.device)
    provider.finalize()
    (model,) = provider.provide_distributed_model(
        wrap_with_ddp=False, mixed_precision_wrapper=None, pg_collection=layout.teacher_groups()
    )
    model.requires_grad_(False)
    model.eval()
    return _in_precision(tap_head(model), provider)


def _in_precision(model: GPTModel, provider: Any) -> GPTModel:
    return model.to(provider.params_dtype)
