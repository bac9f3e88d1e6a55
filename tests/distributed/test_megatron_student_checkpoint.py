"""A student that goes on from another training's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import Fp8Config, ParallelConfig, RunConfig
from nemo_xtoken.errors import CheckpointError, ConfigError
from nemo_xtoken.integrations.megatron import evaluate, launch
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from tests.distributed import toy

pytestmark = pytest.mark.timeout(240)

ONE_STEP = replace(toy.TRAIN, steps=3, checkpoint_interval=0)
"""At the rate of `still` its steps move no weight by more than rounding."""


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher and `before`, a trained student."""
    launch(toy.student_run(toy_folder, "before"))
    return toy_folder


def still(folder: Path, name: str, parallel: ParallelConfig | None = None) -> RunConfig:
    """A run from `before` that learns nothing."""
    config = toy.student_run(folder, name, train=ONE_STEP, parallel=parallel)
    optimizer = replace(config.optimizer, lr=1e-12, min_lr=0.0)
    return replace(config, optimizer=optimizer, student_checkpoint=str(folder / "before"))


def held_out(config: RunConfig) -> float:
    return evaluate(config, Path(config.data.path).with_name("held_out"))["loss"]


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
        ParallelConfig(pipeline_model_parallel_size=2),
        ParallelConfig(data_parallel_size=2, use_distributed_optimizer=True),
    ],
    ids=["one", "tp", "pp", "distributed optimizer"],
)
def test_a_student_begins_with_the_weights_of_another_training(
    folder: Path, parallel: ParallelConfig, request: pytest.FixtureRequest
) -> None:
    config = still(folder, f"still_{request.node.callspec.id.replace(' ', '_')}", parallel)
    launch(config)
    before = held_out(toy.student_run(folder, "before"))
    assert held_out(config) == pytest.approx(before, rel=1e-5)
    assert before < 0.9 * toy.metrics(toy.student_run(folder, "before"))[0]["ce"]  # random weights are far from it


def test_the_optimizers_own_copy_of_the_weights_is_theirs(folder: Path) -> None:
    config = still(folder, "still_bf16")
    config = replace(config, train=replace(config.train, bf16=True))
    launch(config)
    assert held_out(config) == pytest.approx(held_out(toy.student_run(folder, "before")), rel=1e-2)


def test_what_fp8_knows_of_numbers_is_not_taken_along(folder: Path) -> None:
    config = replace(still(folder, "still_fp8"), fp8=Fp8Config(recipe="delayed", backend="emulate"))
    launch(config)
    assert held_out(config) == pytest.approx(held_out(toy.student_run(folder, "before")), rel=1e-5)


def test_a_run_that_goes_on_takes_its_own_weights(folder: Path) -> None:
    whole = replace(toy.student_run(folder, "whole"), student_checkpoint=str(folder / "before"))
    launch(whole)
    cut = replace(whole, run_dir=str(folder / "cut"))
    shutil.copytree(whole.run_dir, cut.run_dir)
    shutil.rmtree(checkpoint_path(Path(cut.run_dir), 6))
    launch(cut)
    assert toy.metrics(cut) == toy.metrics(whole)


def test_a_run_does_not_go_on_with_another_beginning(folder: Path) -> None:
    launch(still(folder, "begun"))
    with pytest.raises(ConfigError, match="holds a run with another student_checkpoint"):
        launch(replace(still(folder, "begun"), student_checkpoint=None))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere", "student_checkpoint: expected a run directory with a complete checkpoint at .*nowhere, found none"),
        ("teacher_run", "student_checkpoint: checkpoint .* is of another model: .*trained with another tokenizer"),
    ],
)
def test_what_is_no_checkpoint_of_such_a_student_is_refused(folder: Path, checkpoint: str, message: str) -> None:
    config = replace(still(folder, f"from_{checkpoint}"), student_checkpoint=str(folder / checkpoint))
    with pytest.raises(CheckpointError, match=message):
        launch(config)
