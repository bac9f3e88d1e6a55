"""A teacher on ranks of its own, in a layout of its own: the curve of one on the student's ranks."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig, RunConfig, TrainConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from tests.distributed import toy
from tests.distributed.test_megatron_training import assert_same_curve
from tests.forked import Forked, nemo_xtoken

TEACHER = replace(toy.TEACHER, num_layers=2, num_attention_heads=4, num_query_groups=4)
TRAIN = replace(
    toy.TRAIN, steps=5, checkpoint_interval=2, keep_checkpoints=9, validation_interval=2, validation_batches=1
)

ONE = ParallelConfig()
TP2 = ParallelConfig(tensor_model_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
DP2 = ParallelConfig(data_parallel_size=2)
TP4 = ParallelConfig(tensor_model_parallel_size=4)
TP2_SP = replace(TP2, sequence_parallel=True)
LAYOUTS = {
    "tp2 from pp2": (TP2, PP2),
    "dp2 from 1": (replace(DP2, use_distributed_optimizer=True), ONE),
    "cp2 from tp2": (CP2, TP2),
    "pp2 from 1": (PP2, ONE),
}
MORE_LAYOUTS = {
    "1 from 1": (ONE, ONE),
    "pp2 from tp2 with sequence parallelism": (PP2, TP2_SP),
    "tp2 pp2 from tp2": (replace(TP2, pipeline_model_parallel_size=2), TP2),
    "pp2 from tp4": (PP2, TP4),
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


def test_a_run_goes_on_with_its_teacher_on_other_ranks(folder: Path) -> None:
    config = remote(folder, "moved", ONE, TP2)
    shutil.copytree(folder / "colocated", config.run_dir)
    for step in (4, 5):
        shutil.rmtree(checkpoint_path(Path(config.run_dir), step))
    launch(config)
    assert_same_curve(toy.metrics(config), toy.metrics(colocated(folder, "colocated")))


def disturbed(config: RunConfig, disturb: Callable[[int, int], None]) -> tuple[int, str]:
    """Exit code and messages of a run that is disturbed after three steps, by what is called with the command's and the
    teacher's process."""
    file = Path(f"{config.run_dir}.yaml")
    save_run(config, file)
    process = Forked(nemo_xtoken, "train", file, log=file.with_suffix(".log"))
    metrics = Path(config.run_dir) / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    disturb(process.pid, int(children[-1]))
    return process.wait(), process.texts()[1]


LONG = replace(TRAIN, steps=300, checkpoint_interval=1000, validation_interval=0)


@pytest.mark.slow
@pytest.mark.parametrize("told", ["the command", "the teacher alone"])
def test_a_signal_saves_and_the_run_goes_on_with_the_same_curve(folder: Path, told: str) -> None:
    # The learning rate must not depend on the length of the run.
    constant = replace(toy.student_run(folder).optimizer, lr_decay_style="constant")
    config = replace(remote(folder, f"stopped_{len(told)}", ONE, ONE, LONG), optimizer=constant)

    def tell(command: int, teacher: int) -> None:
        os.kill(command if told == "the command" else teacher, signal.SIGUSR1)

    code, errors = disturbed(config, tell)
    done = steps_done(Path(config.run_dir))
    assert (code, 3 <= done < 300) == (85, True), errors
    assert f"SIGUSR1: {config.run_dir} is saved after step {done} of 300" in errors
    config = replace(config, train=replace(LONG, steps=done + 5))
    launch(config)
    whole = replace(colocated(folder, f"whole_{len(told)}", train=config.train), optimizer=constant)
    launch(whole)
    assert_same_curve(toy.metrics(config), toy.metrics(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "rank 1 (teacher 'teacher') was ended by SIGKILL; the same command goes on from the latest"),
        (signal.SIGSTOP, "has not answered for 3 s; the same command goes on from the latest checkpoint"),
    ],
    ids=["dead", "silent"],
)
def test_a_teacher_that_is_lost_ends_the_run_and_is_named(folder: Path, number: signal.Signals, message: str) -> None:
    config = remote(folder, f"lost_{number.name}", ONE, ONE, LONG)
    (teacher,) = config.teachers
    config = replace(config, teachers=(replace(teacher, patience_seconds=3.0),))
    code, errors = disturbed(config, lambda command, teacher: os.kill(teacher, number))
    assert code == 1
    assert message in errors.replace("\n", " ")
    assert "rank 1 (teacher 'teacher')" in errors.replace("\n", " ")
    assert "Traceback" not in errors
