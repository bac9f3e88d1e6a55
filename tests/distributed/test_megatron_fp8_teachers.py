"""Teachers in FP8: on ranks of their own as on the student's, and told apart when a run is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.config import Fp8Config, ParallelConfig, RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy
from tests.distributed.test_megatron_training import assert_same_curve

TRAIN = replace(toy.TRAIN, steps=3, global_batch_size=4, checkpoint_interval=0)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    return toy_folder


def fp8(recipe: Any) -> Fp8Config:
    return Fp8Config(recipe=recipe, backend="emulate")


def run(folder: Path, name: str, fp8: Fp8Config | None, *, remote: bool = False) -> RunConfig:
    config = toy.student_run(folder, name, train=TRAIN)
    teacher = replace(config.teachers[0], fp8=fp8)
    if remote:
        teacher = replace(teacher, kind="remote", parallel=ParallelConfig())
    return replace(config, teachers=(teacher,))


@pytest.mark.parametrize("recipe", ["current", pytest.param("mxfp8", marks=pytest.mark.slow)])
def test_a_remote_teacher_rounds_as_a_colocated_one(folder: Path, recipe: str) -> None:
    away, beside = run(folder, f"{recipe}_away", fp8(recipe), remote=True), run(folder, f"{recipe}_beside", fp8(recipe))
    plain = run(folder, f"{recipe}_plain", None)
    assert (away.world_size, beside.world_size) == (2, 1)
    for config in (away, beside, plain):
        launch(config)
    assert_same_curve(toy.metrics(away), toy.metrics(beside))
    first, exact = toy.metrics(away)[0], toy.metrics(plain)[0]
    assert first["kd"] == pytest.approx(exact["kd"], rel=0.1)
    assert first["kd"] != pytest.approx(exact["kd"], rel=1e-5)
    assert_a_change_is_noticed(away)
    assert_a_change_is_noticed(beside)
    assert_a_change_is_noticed(plain)


def assert_a_change_is_noticed(config: RunConfig) -> None:
    """Of the teacher's FP8, in a run that has been trained."""
    (teacher,) = config.teachers
    others = [None, fp8("current"), fp8("blockwise"), Fp8Config(recipe="current", backend="emulate", format="e4m3")]
    for other in others:
        if other == teacher.fp8:
            continue
        changed = replace(config, teachers=(replace(teacher, fp8=other),), train=replace(TRAIN, steps=9))
        with pytest.raises(ConfigError, match=r"holds a run with another teachers\.0\.fp8.*give back the old value"):
            launch(changed)


def test_delayed_scaling_is_refused_wherever_the_teacher_is(folder: Path) -> None:
    for remote in (False, True):
        with pytest.raises(ConfigError, match="teacher 'teacher': delayed scaling learns its scales from training"):
            run(folder, "delayed", fp8("delayed"), remote=remote)
