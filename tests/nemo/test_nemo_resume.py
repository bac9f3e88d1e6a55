"""A run through `llm.train` stops and goes on: the same curve, without the teacher in its checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from megatron.core import dist_checkpointing
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning import io

from nemo_xtoken import tokenizers
from nemo_xtoken.config import BalanceConfig, LossConfig, ParallelConfig, RunConfig
from nemo_xtoken.errors import CheckpointError
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron.learnt_projection import learnt_projection_path
from nemo_xtoken.integrations.nemo import (
    CrossTokenizerDistillationModel,
    DistillationConfig,
    DistillationProgress,
    NemoTeacher,
    ProjectionSnapshots,
)
from nemo_xtoken.projection import ProjectionMatrix, build
from tests.distributed import toy
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks
from tests.nemo.test_nemo_training import our_run

pytestmark = pytest.mark.timeout(240)

TP2 = ParallelConfig(tensor_model_parallel_size=2)


class StopAfter(pl.Callback, io.IOMixin):
    """Ends a run early, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W and a trained teacher."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    return folder


def train(config: RunConfig, stop_after: int | None, projection: str | None) -> list[dict[str, float]]:
    """A run, or the rest of it, by `llm.train`."""
    curve = nemo_toy.Curve()
    checkpoints = nl.ModelCheckpoint(every_n_train_steps=3, save_last=True, save_top_k=-1, save_optim_on_train_end=True)
    snapshots = ProjectionSnapshots(every_n_steps=2)
    callbacks = [curve, snapshots, *([StopAfter(stop_after)] if stop_after else [])]
    trainer = nemo_toy.trainer(config, callbacks, enable_checkpointing=True)
    trainer.strategy.store = rendezvous()
    if projection is not None:
        config = replace(config, teachers=(replace(config.teachers[0], projection=projection),))
    llm.train(
        model=nemo_toy.student_model(config),
        data=nemo_toy.data(config),
        trainer=trainer,
        log=nl.NeMoLogger(explicit_log_dir=config.run_dir, ckpt=checkpoints),
        resume=nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True),
        tokenizer="data",
    )
    return curve.lines


def curve(config: RunConfig, stop_after: int | None = None, projection: str | None = None) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    return run_nemo_ranks(config.parallel.world_size, train, config, stop_after, projection)[0]


def toy_vocabulary(config: RunConfig) -> int:
    return nemo_toy.data(config).tokenizer.vocab_size


def checkpoint(config: RunConfig) -> Path:
    """The last one."""
    return max((Path(config.run_dir) / "checkpoints").glob("*-last"), key=lambda path: path.stat().st_mtime)


def snapshot(run_dir: Path, step: int) -> ProjectionMatrix:
    """W as it was after a step."""
    return ProjectionMatrix.load(learnt_projection_path(run_dir / f"projections/step-{step}", "teacher"))


@pytest.fixture(scope="module")
def stopped(folder: Path) -> tuple[RunConfig, list[dict[str, float]]]:
    """A run on two ranks that trains its W, stopped after three of six steps."""
    config = our_run(folder, "stopped", steps=6, parallel=TP2)
    teacher = replace(config.teachers[0], learn_projection=True, projection_lr=0.1)
    config = replace(config, teachers=(teacher,))
    return config, curve(config, stop_after=3)


def test_a_stopped_run_goes_on_with_the_same_curve(
    folder: Path, stopped: tuple[RunConfig, list[dict[str, float]]], tmp_path: Path
) -> None:
    config, first = stopped
    whole = curve(replace(config, run_dir=str(tmp_path / "whole")))
    assert len(first) == 3
    assert first == whole[:3]
    assert "ratio" in whole[3]
    shutil.copytree(config.run_dir, tmp_path / "rest")
    rest = curve(replace(config, run_dir=str(tmp_path / "rest")))
    assert first + rest == whole
    learnt = [snapshot(tmp_path / "whole", step) for step in (2, 4, 6)]
    assert (learnt[0].weights != learnt[2].weights).any()
    assert (snapshot(tmp_path / "rest", 6).weights == learnt[2].weights).all()
    assert {path.name for path in (tmp_path / "rest/projections").iterdir()} == {f"step-{i}" for i in (2, 3, 4, 6)}


def test_the_checkpoint_holds_balance_and_projection_and_not_the_teacher(
    stopped: tuple[RunConfig, list[dict[str, float]]],
) -> None:
    config, lines = stopped
    weights = str(checkpoint(config) / "weights")
    saved = dist_checkpointing.load_tensors_metadata(weights)
    student = {name for name in saved if name.startswith("module.")}
    assert "module.embedding.word_embeddings.weight" in student
    assert saved["module.embedding.word_embeddings.weight"].global_shape[1] == toy.STUDENT.hidden_size
    teacher_width = toy.TEACHER.hidden_size
    assert not [name for name in saved if teacher_width in saved[name].global_shape]
    learnt = saved["projection.teacher.parameters"]
    assert learnt.global_shape[0] >= toy_vocabulary(config)
    state = dist_checkpointing.load_common_state_dict(weights)["nemo_xtoken"]
    assert state["balance"]["ratio"] == lines[-1]["ce"] / lines[-1]["kd"]


def test_the_context_of_a_checkpoint_gives_the_model_back(stopped: tuple[RunConfig, list[dict[str, float]]]) -> None:
    config, _ = stopped
    model = io.load_context(checkpoint(config) / "context", subpath="model")
    ours = nemo_toy.student_model(config)
    assert isinstance(model, CrossTokenizerDistillationModel)
    assert model.distillation.balance == ours.distillation.balance
    assert model.distillation.teachers[0].loss == ours.distillation.teachers[0].loss
    assert model.distillation.teachers[0].checkpoint == ours.distillation.teachers[0].checkpoint
    config_of_teacher: Any = model.distillation.teachers[0].config
    assert config_of_teacher.hidden_size == toy.TEACHER.hidden_size
    assert model.config.calculate_per_token_loss
    assert model.tokenizer.vocab_size == ours.tokenizer.vocab_size


def test_a_run_does_not_go_on_with_another_projection(
    folder: Path, stopped: tuple[RunConfig, list[dict[str, float]]], tmp_path: Path
) -> None:
    config, _ = stopped
    other = build(tokenizers.load(toy.student_spec(folder)), tokenizers.load("bytes"), top_k=1)
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="was started with another projection"):
        curve(replace(config, train=replace(config.train, steps=9)), projection=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    "thing",
    [
        NemoTeacher(checkpoint="nemo/qwen"),
        NemoTeacher(checkpoint="nemo/qwen", loss=LossConfig(mode="h_kl")),
        DistillationConfig(),
        DistillationConfig(teachers=[NemoTeacher(checkpoint="nemo/qwen")], balance=BalanceConfig(mode="fixed")),
    ],
    ids=["teacher", "its loss", "distillation", "its teacher"],
)
def test_what_a_student_is_distilled_from_is_dumped_without_a_model(thing: Any, tmp_path: Path) -> None:
    thing.io_dump(tmp_path, yaml_attrs=[])
    assert io.load(tmp_path, type(thing)) == thing


def test_io_dump_and_load_round_trip(folder: Path, tmp_path: Path) -> None:
    config = our_run(folder, "dumped")
    for name, thing in {
        "model": nemo_toy.student_model(config),
        "data": nemo_toy.data(config, blend=None),
        "progress": DistillationProgress(),
        "snapshots": ProjectionSnapshots(every_n_steps=7),
    }.items():
        thing.io_dump(tmp_path / name, yaml_attrs=[])
        again = io.load(tmp_path / name, type(thing))
        assert type(again).__name__ == type(thing).__name__
        again.io_dump(tmp_path / f"{name}-again", yaml_attrs=[])
        assert (tmp_path / name / "io.json").read_text() == (tmp_path / f"{name}-again" / "io.json").read_text()
    assert torch.get_default_dtype() == torch.float32
