"""W that is trained along with the student: the same in every layout, kept by checkpoints, always distributions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_xtoken.cli.app import run as command
from nemo_xtoken.config import LossConfig, LossMode, OptimizerConfig, ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.learnt_projection import learnt_projection_path
from nemo_xtoken.integrations.megatron.setup import set_up
from nemo_xtoken.integrations.megatron.train_loop import train_step
from nemo_xtoken.projection import ProjectionMatrix
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.test_megatron_training import assert_same_curve, curve

LR = 0.05
TP2 = ParallelConfig(tensor_model_parallel_size=2)
DP2 = ParallelConfig(data_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
LAYOUTS = {
    "tp2": TP2,
    "dp2": replace(DP2, use_distributed_optimizer=True),
    "pp2": PP2,
    "cp2": CP2,
    "tp2_pp2": replace(TP2, pipeline_model_parallel_size=2),
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, and on one rank two students: with a fixed W and with one that is trained."""
    launch(toy.student_run(toy_folder, "frozen"))
    launch(run(toy_folder, "alone"))
    return toy_folder


def run(folder: Path, name: str, parallel: ParallelConfig | None = None) -> RunConfig:
    config = toy.student_run(folder, name, parallel=parallel)
    return replace(config, teachers=(replace(config.teachers[0], learn_projection=True, projection_lr=LR),))


def learnt(config: RunConfig, step: int = toy.TRAIN.steps) -> ProjectionMatrix:
    return ProjectionMatrix.load(learnt_projection_path(checkpoint_path(Path(config.run_dir), step), "teacher"))


def copy_of_alone(folder: Path, name: str) -> RunConfig:
    """A run directory of its own with the checkpoint after step 4 of six."""
    config = run(folder, name)
    shutil.copytree(folder / "alone", config.run_dir, dirs_exist_ok=True)
    shutil.rmtree(checkpoint_path(Path(config.run_dir), toy.TRAIN.steps))
    return config


def test_rows_move_and_stay_distributions(folder: Path) -> None:
    before, after = ProjectionMatrix.load(folder / "projection.safetensors"), learnt(run(folder, "alone"))
    several = (before.indices >= 0).sum(1) > 1
    assert several.sum() == 60
    moved = np.abs(after.weights - before.weights).max(1)
    assert (moved[several] > 0.01).all(), "every number of two digits occurs in the text"
    assert (after.weights[~several] == before.weights[~several]).all(), "rows of one entry have nowhere to go"
    assert (after.indices == before.indices).all()
    for step in (4, 6):
        weights = learnt(run(folder, "alone"), step).weights
        assert (weights >= 0).all()
        assert weights[~before.empty_rows].sum(1) == pytest.approx(1, abs=1e-6)
    assert (learnt(run(folder, "alone"), 4).weights != after.weights).any()


def test_training_w_changes_what_the_student_learns(folder: Path) -> None:
    frozen, alone = (toy.metrics(config) for config in (toy.student_run(folder, "frozen"), run(folder, "alone")))
    # Sums over W's entries run in another order where W has a gradient, so the last bit may differ.
    assert alone[0] == pytest.approx(frozen[0], rel=1e-6), (
        "the first step starts from the same W, and the norm is the student's own"
    )
    assert all(line["kd"] < fixed["kd"] * (1 - 1e-4) for line, fixed in zip(alone[2:], frozen[2:], strict=True))
    assert not list((folder / "frozen").rglob("learnt-projection*"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_curve_and_the_same_w(folder: Path, name: str) -> None:
    config, alone = run(folder, name, LAYOUTS[name]), run(folder, "alone")
    assert_same_curve(curve(config), toy.metrics(alone))
    assert learnt(config).weights == pytest.approx(learnt(alone).weights, abs=2e-5)


def test_a_run_that_was_interrupted_learns_the_same_w_bit_for_bit(folder: Path) -> None:
    config, alone = copy_of_alone(folder, "interrupted"), run(folder, "alone")
    launch(config)
    assert toy.metrics(config) == toy.metrics(alone)
    assert (learnt(config).weights == learnt(alone).weights).all()


@pytest.mark.parametrize("parallel", [TP2, PP2, replace(TP2, data_parallel_size=2)])
def test_w_goes_on_in_another_layout_and_back(folder: Path, parallel: ParallelConfig) -> None:
    alone, config = run(folder, "alone"), copy_of_alone(folder, f"moved_{parallel.world_size}_{parallel == PP2}")
    config = replace(config, train=replace(config.train, checkpoint_interval=1))
    curve(replace(config, parallel=parallel))
    assert_same_curve(toy.metrics(config), toy.metrics(alone))
    shutil.rmtree(checkpoint_path(Path(config.run_dir), toy.TRAIN.steps))
    launch(config)
    assert_same_curve(toy.metrics(config), toy.metrics(alone))
    assert learnt(config).weights == pytest.approx(learnt(alone).weights, abs=2e-5)


CHOSEN_COLUMNS = LossConfig(teacher_top_k=20, merge="first", temperature=2.0)


@pytest.mark.parametrize(("loss", "bf16", "tolerance"), [(CHOSEN_COLUMNS, False, 1e-5), (LossConfig(), True, 1e-2)])
def test_w_is_learnt_on_chosen_columns_and_by_a_bf16_student(
    folder: Path, loss: LossConfig, bf16: bool, tolerance: float
) -> None:
    configs = [run(folder, f"bf16_{bf16}_{i}", parallel) for i, parallel in enumerate((ParallelConfig(), TP2))]
    for config in configs:
        teacher = replace(config.teachers[0], loss=loss)
        curve(replace(config, teachers=(teacher,), train=replace(config.train, bf16=bf16)))
    alone, two = (toy.metrics(config) for config in configs)
    assert [line["kd"] for line in two] == pytest.approx([line["kd"] for line in alone], rel=tolerance)
    before, after = ProjectionMatrix.load(folder / "projection.safetensors"), learnt(configs[1])
    assert np.abs(after.weights - before.weights).max() > 0.01


def first_step(config: RunConfig) -> tuple[Any, float]:
    """Adam's first moment of W's parameters after one step, and the norm of the student's gradient."""
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    line = train_step(training, 1, next(training.batches()))
    (projection,) = training.objective.learnt_projections
    return projection.sharded_state_dict()["exp_avg"].data.clone(), line["grad_norm"]


def test_the_gradient_of_w_is_neither_clipped_nor_in_the_students_norm(folder: Path) -> None:
    config = run(folder, "clipped")
    moments, norms = [], []
    for clip_grad in (0.0, 1e-3):
        optimizer: OptimizerConfig = replace(config.optimizer, clip_grad=clip_grad)
        ((moment, norm),) = run_ranks(1, first_step, replace(config, optimizer=optimizer))
        moments.append(moment)
        norms.append(norm)
    assert moments[0].abs().max() > 1e-5
    assert (moments[0] == moments[1]).all()
    assert norms[1] == pytest.approx(toy.metrics(toy.student_run(folder, "frozen"))[0]["grad_norm"], rel=1e-6)
    assert norms[1] > 1e-3, "clipping had something to do"


def test_the_learnt_file_is_an_ordinary_projection(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = learnt_projection_path(checkpoint_path(folder / "alone", 6), "teacher")
    before, after = ProjectionMatrix.load(folder / "projection.safetensors"), ProjectionMatrix.load(path)
    after.check_pair(before.student_fingerprint, before.teacher_fingerprint)
    assert (after.exact_rows == before.exact_rows).all()
    assert (after.beta, after.gamma) == (None, None)
    assert command(["projection", "show", str(path), "25"]) == 0
    assert command(["projection", "audit", str(path)]) == 0
    assert "p_kl" in capfd.readouterr().out.lower().replace("-", "_")


def test_only_the_mode_that_projects_learns_w() -> None:
    modes: list[LossMode] = ["h_kl", "gold", "uld", "strict_top_k", "same_tokenizer"]
    for mode in modes:
        with pytest.raises(
            ConfigError, match=rf"learn_projection needs loss.mode p_kl, .* got {mode}; set one of them"
        ):
            TeacherConfig(model=toy.TEACHER, checkpoint="x", loss=LossConfig(mode=mode), learn_projection=True)
    with pytest.raises(ConfigError, match="projection_lr must be positive, got 0"):
        TeacherConfig(model=toy.TEACHER, checkpoint="x", projection_lr=0.0)
    with pytest.raises(ConfigError, match=r"teacher names are letters, digits and \. _ -"):
        TeacherConfig(name="../w", model=toy.TEACHER, checkpoint="x")
