"""The teacher, built by its own provider when the student is there and not yet wrapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.limits import refuse_teacher
from nemo_xtoken.integrations.bridge.models import adapt, provider_from
from nemo_xtoken.integrations.megatron.head_tap import tap_head
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.projection_file import projection_file
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.projection import ProjectionMatrix


def build_teacher(
    config: DistillationContainer,
    teacher: BridgeTeacher,
    manifest: Manifest,
    layout: Layout,
    student_head: torch.Tensor | None,
) -> ColocatedTeacher | None:
    """The teacher where this rank has the student's head, else None. Every rank must call it."""
    assert manifest.teacher is not None
    model = build_model(config, teacher, layout)
    folder = Path(config.checkpoint.save or ".")
    folder.mkdir(parents=True, exist_ok=True)
    projection = projection_file(teacher.projection, folder, manifest.student, manifest.teacher)
    matrix = ProjectionMatrix.load(projection)
    matrix.check_pair(manifest.student.fingerprint, manifest.teacher.fingerprint)
    if student_head is None:
        return None
    return ColocatedTeacher(teacher, model, matrix, student_head, layout)


def build_model(config: DistillationContainer, teacher: BridgeTeacher, layout: Layout) -> GPTModel:
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
    }
    for name, value in {**options, **teacher.options}.items():
        setattr(provider, name, value)
    provider.pipeline_model_parallel_size = 1
    provider.virtual_pipeline_model_parallel_size = None
    provider.pipeline_dtype = None
    provider.seq_length = config.dataset.data.teacher_sequence_length
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
