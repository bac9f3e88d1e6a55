"""Trainings that SLURM really runs: preempted, killed, timed out, chained. Their curve is that of no accident."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nemo_xtoken.cli.app import run as run_cli
from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import load, to_dict
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import launch as train
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from nemo_xtoken.launch import HealthConfig, JobConfig, slurm
from nemo_xtoken.launch.submission import is_alive, launch
from tests.conftest import CHECKOUT
from tests.documents import bash_blocks
from tests.reader import make_files, run_commands
from tests.slurm.jobs import (
    CLUSTER,
    JOB,
    assert_same_curve,
    is_training,
    plan_of,
    rank_process,
    run_of,
    wait_for_end,
    wait_until,
)

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

SCRIPTS = CHECKOUT / "tests" / "unit" / "launch_scripts"


def test_slurm_accepts_every_script_of_the_launcher_configs() -> None:
    """The cluster has the partitions that they name."""
    scripts = sorted(SCRIPTS.glob("*.sbatch"))
    assert scripts
    for script in scripts:
        slurm.check_accepted(script)
    text = next(script for script in scripts if script.stem == "modules-train").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"SLURM refuses .*Invalid partition name"):
        slurm.check_accepted(write(scripts[0].name, text.replace("--partition=gpu", "--partition=gpus")))


def write(name: str, text: str) -> Path:
    path = Path(os.environ["SLURM_CONF"]).parent / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preempted_job_saves_is_requeued_and_goes_on_with_the_same_curve(
    prepared: Path, uninterrupted: RunConfig
) -> None:
    run = run_of(prepared, "preempted", 300)
    job = replace(JOB, health=HealthConfig(free_disk_gb=0.001))
    plan = plan_of(run, replace(CLUSTER, partition="preempt"), job)
    (submission,) = launch(plan)
    with pytest.raises(ConfigError, match=rf"job {submission.job_id} of this run is still queued or running"):
        launch(plan)
    wait_until(lambda: is_training(run, 20), "20 steps are done")
    command = ["sbatch", "--partition=debug", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    subprocess.run(command, check=True, capture_output=True)
    log = wait_for_end(plan, submission.job_id)
    assert "attempt 0 ended with exit code 85; newest checkpoint: step-0000" in log
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000300" in log
    assert_same_curve(run, uninterrupted)


def test_a_job_whose_rank_is_killed_goes_on_from_the_checkpoint(prepared: Path, uninterrupted: RunConfig) -> None:
    run = run_of(prepared, "killed", 300)
    run = replace(run, train=replace(run.train, checkpoint_interval=50))
    plan = plan_of(run)
    (submission,) = launch(plan)
    wait_until(lambda: steps_done(Path(run.run_dir)) >= 50, "a checkpoint is written")
    os.kill(rank_process(plan), 9)
    log = wait_for_end(plan, submission.job_id)
    assert "attempt 0 ended with exit code 137" in log
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000300" in log
    assert_same_curve(run, uninterrupted)


def test_before_the_time_limit_a_job_saves_and_starts_anew(prepared: Path) -> None:
    run = run_of(prepared, "too_long", 100_000)
    # SLURM counts in minutes: 60 s, of which the last 30 are for saving.
    plan = plan_of(run, replace(CLUSTER, signal_lead_seconds=35), replace(JOB, time="1", max_requeues=0))
    (submission,) = launch(plan)
    log = wait_for_end(plan, submission.job_id)
    done = steps_done(Path(run.run_dir))
    assert 0 < done < 100_000
    assert f"ended with exit code 85; newest checkpoint: step-{done:08d}" in log
    assert "no requeue is left of 0" in log


def test_a_chain_goes_on_where_the_job_before_ended_and_does_nothing_once_it_is_done(prepared: Path) -> None:
    run = run_of(prepared, "chained", 6)
    plan = plan_of(run, job=replace(JOB, chain=2, max_requeues=0))
    first, second = launch(plan)
    assert "attempt 0 ended with exit code 0; newest checkpoint: step-00000006" in wait_for_end(plan, first.job_id)
    assert "attempt 0 ended with exit code 0" in wait_for_end(plan, second.job_id)
    rank_0 = plan.folder / "logs" / f"{plan.name}-{second.job_id}-0-rank0.log"
    assert "is finished: 6 steps are done" in rank_0.read_text(encoding="utf-8")


def test_torchrun_tells_its_ranks_to_save(prepared: Path, uninterrupted: RunConfig) -> None:
    run = run_of(prepared, "torchrun", 300)
    plan = plan_of(run, replace(CLUSTER, launcher="torchrun"))
    (submission,) = launch(plan)
    wait_until(lambda: is_training(run, 20), "20 steps are done")
    # What SLURM does before the time limit, to the batch script alone.
    subprocess.run(["scancel", "--batch", "--signal=USR1", submission.job_id], check=True)
    log = wait_for_end(plan, submission.job_id)
    (saved,) = re.findall(r"attempt 0 ended .* newest checkpoint: step-(\d+)\n", log)
    assert 20 <= int(saved) < 300
    assert "attempt 1 ended with exit code 0; newest checkpoint: step-00000300" in log
    assert_same_curve(run, uninterrupted)


def test_an_unhealthy_node_is_excluded(prepared: Path) -> None:
    """node1 says that no disk is free on it; a cluster of two nodes then has one left for a job of one."""
    run = replace(run_of(prepared, "healthy", 6), parallel=ParallelConfig())
    check = prepared / "check"
    check.write_text(
        f'#!/bin/sh\nif [ "$2 $SLURMD_NODENAME" = "check-node node1" ]; then echo "unhealthy node node1: no disk"\n'
        f'else exec {CLUSTER.executable} "$@"; fi\n',
        encoding="utf-8",
    )
    check.chmod(0o755)
    job = replace(JOB, nodes=1, health=HealthConfig(free_disk_gb=0.001, ping=False))
    cluster = replace(CLUSTER, executable=str(check), sbatch_arguments=("--nice=0",))
    plan = plan_of(run, cluster, job)
    (submission,) = launch(plan)
    log = wait_for_end(plan, submission.job_id)
    assert "attempt 0 of job" in log
    assert "unhealthy node node1: no disk" in log
    assert "attempt 1 ended with exit code 0" in log
    assert f"attempt 1 of job {submission.job_id} on node2" in log


def test_a_wrong_config_ends_the_job_at_once(prepared: Path) -> None:
    run = run_of(prepared, "wrong", 6)
    train(run)
    wrong = replace(run, optimizer=replace(run.optimizer, lr=1.0), train=replace(run.train, steps=8))
    plan = plan_of(wrong)
    (submission,) = launch(plan)
    log = wait_for_end(plan, submission.job_id)
    assert "attempt 0 ended with exit code 2; newest checkpoint: step-00000006" in log
    assert "requeued" not in log
    for rank in range(2):
        said = plan.folder / "logs" / f"{plan.name}-{submission.job_id}-0-rank{rank}.log"
        assert "holds a run with another optimizer.lr" in said.read_text(encoding="utf-8")


def test_a_job_that_saves_nothing_gives_up(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its teacher is gone by the time it starts, at every attempt."""
    run = run_of(prepared, "stalled", 6)
    plan = plan_of(run, job=replace(JOB, max_stalls=2))
    (prepared / "teacher_run").rename(prepared / "elsewhere")
    try:
        # An empty directory is there when it is launched, and is no run.
        (prepared / "teacher_run").mkdir()
        (submission,) = launch(plan)
        log = wait_for_end(plan, submission.job_id)
    finally:
        (prepared / "teacher_run").rmdir()
        (prepared / "elsewhere").rename(prepared / "teacher_run")
    assert log.count("requeued") == 1
    assert "giving up: 2 attempts in a row ended without a newer checkpoint" in log
    assert run_cli(["launch", "status", run.run_dir]) == 0
    assert "0 of 6 steps are saved" in capsys.readouterr().out
    assert run_cli(["launch", "logs", run.run_dir]) == 0
    assert "expected a run directory with a complete checkpoint" in capsys.readouterr().out


def test_a_cancelled_job_saves_and_stays_cancelled(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(prepared, "cancelled", 100_000)
    plan = plan_of(run)
    (submission,) = launch(plan)
    wait_until(lambda: is_training(run, 3), "3 steps are done")
    assert run_cli(["launch", "cancel", run.run_dir]) == 0
    assert f"cancelled: {submission.job_id}" in capsys.readouterr().out
    log = wait_for_end(plan, submission.job_id)
    assert "not requeued, since the job is COMPLETING" in log
    assert "attempt 1" not in log
    assert run_cli(["launch", "cancel", run.run_dir]) == 0
    assert "no job of this run is queued or running" in capsys.readouterr().out


def test_slurm_refuses_what_the_cluster_does_not_have(prepared: Path) -> None:
    run = run_of(prepared, "refused", 6)
    with pytest.raises(ConfigError, match=r"SLURM refuses .*partition"):
        launch(plan_of(run, replace(CLUSTER, partition="no_such")))
    with pytest.raises(ConfigError, match="SLURM refuses"):
        launch(plan_of(run, job=replace(JOB, time="3-00:00:00")))
    assert not (Path(run.run_dir) / "launch" / "jobs.jsonl").exists()


def test_an_array_prepares_parts_of_the_text(prepared: Path, tmp_path: Path) -> None:
    run = run_of(prepared, "array", 6)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 1+1=2\n", encoding="utf-8")
    command = (
        *("data", "prepare", str(tmp_path), "--part", "{array_index}/{array_size}", "--student", "bytes"),
        *("--out", f"{tmp_path}/part-{{array_index}}"),
    )
    plan = plan_of(run, job=JobConfig(nodes=1, time="5", array=2, name="prepare", command=command))
    (submission,) = launch(plan)
    wait_until(lambda: not is_alive(slurm.states([submission.job_id])[submission.job_id]), "the array has ended")
    assert (tmp_path / "part-0" / "manifest.json").is_file()
    assert (tmp_path / "part-1" / "manifest.json").is_file()


def test_an_array_stores_a_teacher(prepared: Path) -> None:
    """Each job its shards; without those of the second one the cache is not whole."""
    run = run_of(prepared, "stored", 6)
    job = load(JobConfig, CHECKOUT / "launcher_configs" / "jobs" / "teacher_cache.yaml", ["array=2", "time=00:05:00"])
    plan = plan_of(run, job=replace(job, command=(*job.command, "--shard-tokens", "500")))
    (submission,) = launch(plan)
    wait_until(lambda: not is_alive(slurm.states([submission.job_id])[submission.job_id]), "the array has ended")
    assert run_cli(["teacher", "check", f"{run.data.path}.teachers/teacher"]) == 0
    logs = [path.read_text(encoding="utf-8") for path in (plan.folder / "logs").glob("*-rank0.log")]
    assert len(logs) == 2
    train(replace(run, teachers=tuple(replace(teacher, kind="cached") for teacher in run.teachers)))


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    """With the cluster's file filled in for this one; without `--dry-run` what was printed is submitted, and trains."""
    make_files(tmp_path)
    cluster = tmp_path / "launcher_configs" / "clusters" / "generic.yaml"
    filled_in = {**yaml.safe_load(cluster.read_text(encoding="utf-8")), **to_dict(CLUSTER)}
    cluster.write_text(yaml.safe_dump(filled_in), encoding="utf-8")
    (block,) = bash_blocks(CHECKOUT / "docs" / "slurm.md")
    to_launch, status = block.split("nemo-xtoken launch status")
    commands = [to_launch, to_launch.replace("--dry-run", ""), f"nemo-xtoken launch status{status}"]
    stand_ins = {"job.nodes=4": "job.nodes=2 job.health.free_disk_gb=0.001", "=32": "=2"}
    code, told = run_commands(commands, tmp_path, stand_ins)
    assert code == 0, told[-3000:]
    (script,) = (path.read_text(encoding="utf-8") for path in tmp_path.glob("RUN_DIR/launch/*.sbatch"))
    assert script in told
    wait_until(lambda: steps_done(tmp_path / "RUN_DIR") == 6, "the run is done")
