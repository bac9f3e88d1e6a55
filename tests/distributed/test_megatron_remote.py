"""A teacher on ranks of its own, in a layout of its own: the curve of one on the student's ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig, RunConfig, TrainConfig
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy
from tests.distributed.test_megatron_training import assert_same_curve

TEACHER = replace(toy.TEACHER, num_layers=2)
TRAIN = replace(
    toy.TRAIN, steps=5, checkpoint_interval=2, keep_checkpoints=9, validation_interval=2, validation_batches=1
)

ONE = ParallelConfig()
TP2 = ParallelConfig(tensor_model_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
DP2 = ParallelConfig(data_parallel_size=2)
TP2_SP = replace(TP2, sequence_parallel=True)
LAYOUTS = {
    "tp2 from pp2": (TP2, PP2),
    "dp2 from 1": (replace(DP2, use_distributed_optimizer=True), ONE),
    "cp2 from tp2": (CP2, TP2),
}
MORE_LAYOUTS = {
    "1 from 1": (ONE, ONE),
    "pp2 from tp2 with sequence parallelism": (PP2, TP2_SP),
    "tp2 pp2 from tp2": (replace(TP2, pipeline_model_parallel_size=2), TP2),
    "tp2 from cp2": (TP2, CP2),
    "dp2 from dp2": (DP2, DP2),
}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W, a trained teacher, and the student's run with the teacher on its one rank."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(replace(toy.teacher_run(folder), student=TEACHER))
    launch(colocated(folder, "colocated"))
    return folder


def colocated(folder: Path, name: str, parallel: ParallelConfig | None = None, train: TrainConfig = TRAIN) -> RunConfig:
    config = toy.student_run(folder, name, train=train, parallel=parallel)
    return replace(config, teachers=(replace(config.teachers[0], model=TEACHER),))


def remote(
    folder: Path, name: str, student: ParallelConfig, teacher: ParallelConfig, train: TrainConfig = TRAIN
) -> RunConfig:
    config = colocated(folder, name, student, train)
    return replace(config, teachers=(replace(config.teachers[0], kind="remote", parallel=teacher),))


def check(folder: Path, name: str, student: ParallelConfig, teacher: ParallelConfig) -> None:
    config = remote(folder, name.replace(" ", "_"), student, teacher)
    assert config.world_size == student.world_size + teacher.world_size
    launch(config)
    expected = toy.metrics(colocated(folder, "colocated"))
    assert [line["step"] for line in expected if "validation_kd" in line] == [2, 4]
    assert_same_curve(toy.metrics(config), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_remote_teacher_gives_the_curve_of_a_colocated_one(folder: Path, name: str) -> None:
    check(folder, name, *LAYOUTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_LAYOUTS)
def test_further_layouts_give_it_as_well(folder: Path, name: str) -> None:
    check(folder, name, *MORE_LAYOUTS[name])
