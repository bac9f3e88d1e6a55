"""What the recipe `tiny_cpu` trains, by the project's own loop on megatron-core: no part of NeMo takes part in it."""

from __future__ import annotations

from pathlib import Path

from nemo_xtoken.config import OptimizerConfig, ParallelConfig, RunConfig, TeacherConfig, TrainConfig
from nemo_xtoken.data import PreparedData
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron import train_loop
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.checkpoint import Position, TrainingState
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.models import build_gpt
from nemo_xtoken.integrations.megatron.optimizer import build_optimizer, build_schedule, wrap_data_parallel
from nemo_xtoken.integrations.megatron.setup import Training
from nemo_xtoken.integrations.megatron.step import Objective
from nemo_xtoken.integrations.megatron.student import build_student
from nemo_xtoken.integrations.megatron.teacher import ColocatedTeacher
from nemo_xtoken.projection import build
from nemo_xtoken.tokenizers import load
from tests.distributed import toy

TEACHER_SEED = 7


def run_config(folder: Path, steps: int) -> RunConfig:
    """The recipe in our own words. `folder` has the data that it has made."""
    optimizer = OptimizerConfig(lr=5e-3, min_lr=5e-3, lr_decay_style="constant", weight_decay=0.01, clip_grad=0.5)
    return RunConfig(
        run_dir=str(folder),
        student=toy.STUDENT,
        teachers=(TeacherConfig(model=toy.TEACHER, checkpoint=""),),
        data=toy.data_config(folder, "data"),
        optimizer=optimizer,
        train=TrainConfig(steps=steps, micro_batch_size=2, global_batch_size=8),
        device="cpu",
    )


def curve(folder: Path, steps: int) -> list[dict[str, float]]:
    """The lines of metrics, on this one rank."""
    config = run_config(folder, steps)
    layout = layouts.start(ParallelConfig(), "cpu", seed=config.train.seed)
    training = set_up(config, layout, folder)
    batches = training.batches()
    return [train_loop.train_step(training, step, next(batches)) for step in range(1, steps + 1)]


def set_up(config: RunConfig, layout: Layout, folder: Path) -> Training:
    """The loop's parts around a teacher that nobody has trained."""
    manifest = PreparedData.open(config.data.path).manifest
    ids = HeadIds(manifest.student.vocab_size, manifest.student.fingerprint)
    (student,) = build_student(config, layout, ids.size)
    model = build_gpt(
        toy.TEACHER,
        layout.parallel,
        vocab_size=manifest.teachers[0].vocab_size,
        max_sequence_length=config.data.teacher_sequence_length,
        device="cpu",
        seed=TEACHER_SEED,
    ).eval()
    matrix = build(load(str(folder / "huggingface")), load("bytes"))
    teacher = ColocatedTeacher(config.teachers[0], model, matrix, head_weight(student), layout)
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
        objective=Objective(layout, ids.size, (teacher,)),
        state=TrainingState(folder, layout, [student], optimizer, schedule, balance, ids, {}),
        start=Position(0, 0),
    )
