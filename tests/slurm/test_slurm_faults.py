"""Nodes that are lost, limits that come too early, and jobs on nodes of two kinds."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import load
from nemo_xtoken.integrations.megatron import launch as train
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from nemo_xtoken.launch import ComponentConfig, HealthConfig, JobConfig, slurm
from nemo_xtoken.launch.submission import is_alive, launch
from tests.conftest import CHECKOUT
from tests.distributed import toy
from tests.slurm.jobs import (
    CLUSTER,
    JOB,
    assert_same_curve,
    bring_back,
    is_training,
    log_of,
    lose,
    plan_of,
    rank_process,
    run_of,
    wait_for_end,
    wait_until,
)

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


def test_a_job_whose_node_is_lost_goes_on_when_there_are_enough_nodes(prepared: Path, uninterrupted: RunConfig) -> None:
    run = run_of(prepared, "lost_node", 300)
    run = replace(run, train=replace(run.train, checkpoint_interval=50))
    plan = plan_of(run)
    (submission,) = launch(plan)
    wait_until(lambda: steps_done(Path(run.run_dir)) >= 50, "a checkpoint is written")
    lose("node2")
    try:
        wait_until(lambda: slurm.states([submission.job_id])[submission.job_id].startswith("PENDING"), "it is requeued")
    finally:
        bring_back("node2")
    log = wait_for_end(plan, submission.job_id)
    assert "Node failure on node2" in log
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000300" in log
    assert_same_curve(run, uninterrupted)


def test_a_time_limit_before_the_ranks_have_saved_costs_the_steps_since_the_checkpoint(
    prepared: Path, uninterrupted: RunConfig
) -> None:
    """A rank that stands still can't save; the next of the chain goes on from the last checkpoint."""
    run = run_of(prepared, "limit", 300)
    run = replace(run, train=replace(run.train, checkpoint_interval=50))
    plan = plan_of(run, job=replace(JOB, chain=2))
    first, second = launch(plan)
    wait_until(lambda: steps_done(Path(run.run_dir)) >= 50, "a checkpoint is written")
    rank = rank_process(plan)
    os.kill(rank, signal.SIGSTOP)
    saved = steps_done(Path(run.run_dir))
    subprocess.run(["scontrol", "update", f"JobId={first.job_id}", "EndTime=now+2"], check=True)
    deadline = time.monotonic() + 100
    while is_alive(slurm.states([first.job_id])[first.job_id]):
        assert time.monotonic() < deadline
        for _ in range(100):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGSTOP)  # SLURM lets it go on, so that it hears the signal
            time.sleep(0.005)
    assert slurm.states([first.job_id])[first.job_id].startswith("TIMEOUT")
    assert "requeued:" not in log_of(plan, first.job_id)
    assert saved < 300
    assert "attempt 0 ended with exit code 0; newest checkpoint: step-00000300" in wait_for_end(plan, second.job_id)
    rank_0 = plan.folder / "logs" / f"{plan.name}-{second.job_id}-0-rank0.log"
    assert f"resuming {run.run_dir} after step {saved}" in rank_0.read_text(encoding="utf-8")
    assert_same_curve(run, uninterrupted)


def test_ranks_of_both_components_of_a_heterogeneous_job_are_one_group(prepared: Path) -> None:
    """Two ranks on either node, each node with resources of its own, add up a number."""
    run = run_of(prepared, "two_kinds", 6)
    job = JobConfig(
        nodes=1,
        tasks=2,
        time="5",
        name="two_kinds",
        command=("launch", "ping", "--device", "cpu"),
        components=(ComponentConfig(memory="100M"),),
    )
    plan = plan_of(run, job=job)
    (submission,) = launch(plan)
    log = wait_for_end(plan, submission.job_id)
    assert "on node1,node2 at" in log
    assert "ended with exit code 0" in log
    # SLURM 22.05 counts the log files of the second component from one too many.
    logs = (plan.folder / "logs").glob(f"{plan.name}-{submission.job_id}-0-rank*.log")
    assert sorted(path.read_text(encoding="utf-8") for path in logs) == [
        f"{rank}: rank {rank} of 4: all ranks answer\n" for rank in range(4)
    ]


def on_two_kinds_of_nodes(folder: Path, name: str, steps: int) -> RunConfig:
    """The student on one rank, its teacher on another one."""
    run = replace(run_of(folder, name, steps), parallel=ParallelConfig())
    return replace(run, teachers=tuple(replace(teacher, kind="remote") for teacher in run.teachers))


def test_student_and_teacher_train_on_nodes_of_their_own(prepared: Path) -> None:
    """Told of the time limit, both components end once the student is saved, and start anew."""
    run = on_two_kinds_of_nodes(prepared, "heterogeneous", 120)
    whole = replace(run_of(prepared, "one_kind", 120), parallel=ParallelConfig())
    train(whole)
    job = load(JobConfig, CHECKOUT / "launcher_configs" / "jobs" / "heterogeneous.yaml", ["time=00:10:00"])
    plan = plan_of(run, job=replace(job, health=HealthConfig(free_disk_gb=0.001)))
    (submission,) = launch(plan)
    wait_until(lambda: is_training(run, 20), "20 steps are done")
    # What SLURM does before the time limit, to the batch script alone.
    subprocess.run(["scancel", "--batch", "--signal=USR1", submission.job_id], check=True)
    log = wait_for_end(plan, submission.job_id)
    (saved,) = re.findall(r"attempt 0 ended with exit code 85; newest checkpoint: step-(\d+)\n", log)
    assert 20 <= int(saved) < 120
    assert "on node1,node2 at" in log
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000120" in log
    for ours, theirs in zip(toy.metrics(run), toy.metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_an_unhealthy_node_of_either_component_is_excluded_from_both(prepared: Path) -> None:
    """node1 says that no disk is free on it: no node is left for the second component, so the job waits."""
    run = on_two_kinds_of_nodes(prepared, "two_kinds_unhealthy", 6)
    check = prepared / "check_both"
    check.write_text(
        f'#!/bin/sh\nif [ "$2 $SLURMD_NODENAME" = "check-node node2" ]; then echo "unhealthy node node2: no disk"\n'
        f'else exec {CLUSTER.executable} "$@"; fi\n',
        encoding="utf-8",
    )
    check.chmod(0o755)
    job = replace(JOB, nodes=1, components=(ComponentConfig(),), health=HealthConfig(free_disk_gb=0.001))
    plan = plan_of(run, replace(CLUSTER, executable=str(check)), job)
    (submission,) = launch(plan)
    try:
        wait_until(lambda: excluded(submission.job_id) == ["node2", "node2"], "the node is excluded")
    finally:
        slurm.cancel([submission.job_id])
    assert "requeued: node2 failed the health check" in log_of(plan, submission.job_id)


def excluded(job_id: str) -> list[str]:
    """The nodes that each component may not have."""
    shown = subprocess.run(["scontrol", "show", "job", job_id], check=True, capture_output=True, text=True).stdout
    return [word.partition("=")[2] for word in shown.split() if word.startswith("ExcNodeList=")]
