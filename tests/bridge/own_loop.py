"""The same distillation by the project's own training loop, from the weights that Bridge imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from nemo_xtoken.config import (
    BalanceConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from nemo_xtoken.data import PreparedData
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.models import adapt, provider_from
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron import train_loop
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.checkpoint import Position, TrainingState
from nemo_xtoken.integrations.megatron.head_tap import head_weight, tap_head
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.optimizer import build_optimizer, build_schedule, wrap_data_parallel
from nemo_xtoken.integrations.megatron.setup import Training
from nemo_xtoken.integrations.megatron.step import Objective
from nemo_xtoken.integrations.megatron.student import build_student
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.projection import ProjectionMatrix
from tests.bridge import tiny

STUDENT = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48)


def run_config(
    folder: Path, steps: int, teachers: Sequence[BridgeTeacher], student: ModelConfig = STUDENT
) -> RunConfig:
    """What `tiny.config` says, in the words of the own loop. The teachers' models are not of its models."""
    return RunConfig(
        run_dir=str(folder / "own_loop"),
        student=student,
        teachers=tuple(
            TeacherConfig(
                name=teacher.name,
                model=STUDENT,
                checkpoint="",
                loss=teacher.loss,
                weight=teacher.weight,
                prepared_as=teacher.prepared_as,
                learn_projection=teacher.learn_projection,
                projection_lr=teacher.projection_lr,
            )
            for teacher in teachers
        ),
        data=tiny.data_config(folder, len(teachers) > 1),
        balance=BalanceConfig(),
        optimizer=OptimizerConfig(lr=tiny.LR, min_lr=tiny.LR, lr_decay_style="constant", clip_grad=0.5),
        train=TrainConfig(steps=steps, micro_batch_size=2, global_batch_size=8),
        device="cpu",
    )


def curve(
    folder: Path,
    steps: int,
    teachers: Sequence[BridgeTeacher],
    student: ModelConfig = STUDENT,
    family: str | None = None,
) -> list[dict[str, float]]:
    """The lines of metrics of a training on this one rank. What is learnt of W is written to `folder`.

    family  a student that is not of the loop's models: Bridge's own model of `folder / family`, trained by the loop
    """
    config = run_config(folder, steps, teachers, student)
    layout = layouts.start(ParallelConfig(), "cpu", seed=1)
    training = set_up(config, layout, folder, teachers, family)
    batches = training.batches()
    lines = [train_loop.train_step(training, step, next(batches)) for step in range(1, steps + 1)]
    for projection in training.objective.learnt_projections:
        projection.save(folder)
    return lines


def set_up(
    config: RunConfig, layout: Layout, folder: Path, teachers: Sequence[BridgeTeacher], family: str | None = None
) -> Training:
    """The loop's own parts around the imported models."""
    manifest = PreparedData.open(config.data.path).manifest
    ids = HeadIds(manifest.student.vocab_size, manifest.student.fingerprint)
    if family is None:
        (student,) = build_student(config, layout, ids.size)
        student.load_state_dict(imported(folder / "llama", layout).state_dict())
    else:
        student = tap_head(imported(folder / family, layout))
    head = head_weight(student)
    colocated = tuple(_teacher(teacher, head, layout) for teacher in teachers)
    models = [wrap_data_parallel(student, config)]
    optimizer = build_optimizer(models, config)
    schedule = build_schedule(optimizer, config.optimizer, config.train.steps)
    balance = Balance(config.balance)
    return Training(
        config=config,
        layout=layout,
        models=models,
        optimizer=optimizer,
        schedule=schedule,
        balance=balance,
        objective=Objective(layout, ids.size, colocated),
        state=TrainingState(Path(config.run_dir), layout, [student], optimizer, schedule, balance, ids, {}),
        start=Position(0, 0),
    )


def _teacher(teacher: BridgeTeacher, student_head: Tensor, layout: Layout) -> ColocatedTeacher:
    assert teacher.model is not None
    assert teacher.projection is not None
    matrix = ProjectionMatrix.load(teacher.projection)
    learnt = LearntProjection(teacher, matrix, student_head, layout) if teacher.learn_projection else None
    model = tap_head(imported(Path(teacher.model), layout)).eval()
    return ColocatedTeacher(teacher, model, matrix, student_head, layout, learnt)


def imported(path: Path, layout: Layout) -> GPTModel:
    """A Hugging Face model as Bridge builds it, with its head."""
    provider = provider_from(str(path))
    provider.params_dtype, provider.bf16, provider.fp16 = torch.float32, False, False
    provider.attention_backend = AttnBackend.auto
    provider.calculate_per_token_loss = True
    adapt(provider, layout.device)
    provider.finalize()
    (model,) = provider.provide_distributed_model(
        wrap_with_ddp=False, mixed_precision_wrapper=None, pg_collection=layout.groups
    )
    return model.requires_grad_(True)
