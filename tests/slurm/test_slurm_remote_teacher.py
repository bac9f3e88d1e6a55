"""A student on one node and its teacher on the other: the curve of a run on one rank, also when the teacher dies."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.integrations.megatron import launch as train
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from nemo_xtoken.launch import LaunchPlan
from nemo_xtoken.launch.submission import launch
from tests.distributed import toy
from tests.slurm.jobs import plan_of, run_of, wait_for_end, wait_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


def with_one_rank(folder: Path, name: str) -> RunConfig:
    run = replace(run_of(folder, name, 200), parallel=ParallelConfig())
    return replace(run, train=replace(run.train, checkpoint_interval=50))


def teachers_process(plan: LaunchPlan) -> int:
    """The process of rank 1, the teacher's."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(plan.run_file).encode() in words and {b"SLURM_PROCID=1", b"SLURMD_NODENAME=node2"} <= set(variables):
            return int(folder.name)
    raise AssertionError("the teacher's rank is not running on node2")


def test_a_teacher_on_another_node_that_dies_is_named_and_the_job_goes_on(prepared: Path) -> None:
    run = with_one_rank(prepared, "teacher_on_node2")
    run = replace(run, teachers=(replace(run.teachers[0], kind="remote"),))
    plan = plan_of(run)
    (submission,) = launch(plan)
    wait_until(lambda: steps_done(Path(run.run_dir)) >= 50, "a checkpoint is written")
    os.kill(teachers_process(plan), 9)
    log = wait_for_end(plan, submission.job_id)
    assert "attempt 0 ended with exit code 137" in log
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000200" in log
    said = (plan.folder / "logs" / f"{plan.name}-{submission.job_id}-0-rank0.log").read_text(encoding="utf-8")
    assert "rank 1 (teacher 'teacher') on node2 is gone" in " ".join(said.replace("0: ", "").split())
    alone = with_one_rank(prepared, "teacher_beside_it")
    train(alone)
    expected = toy.metrics(alone)
    for line, other in zip(toy.metrics(run), expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6)
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert expected[-1]["kd"] < expected[0]["kd"] / 2
