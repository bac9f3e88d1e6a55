"""Runs as jobs of the test cluster, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.launch import ClusterConfig, JobConfig, LaunchPlan, slurm
from nemo_xtoken.launch.submission import is_alive
from tests.conftest import CHECKOUT
from tests.distributed import toy

DATA_PARALLEL = ParallelConfig(data_parallel_size=2)
CLUSTER = ClusterConfig(
    partition="debug",
    gpus_per_node=0,
    ranks_per_node=1,
    exclusive=False,
    signal_lead_seconds=30,
    executable=f"{Path(sys.executable).parent}/nemo-xtoken",
    environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"]},
)
JOB = JobConfig(nodes=2, time="00:10:00")


def run_of(folder: Path, name: str, steps: int, **changes: int) -> RunConfig:
    settings = replace(toy.TRAIN, steps=steps, checkpoint_interval=1000, log_interval=100, **changes)
    return toy.student_run(folder, name, train=settings, parallel=DATA_PARALLEL)


def plan_of(run: RunConfig, cluster: ClusterConfig = CLUSTER, job: JobConfig = JOB) -> LaunchPlan:
    return LaunchPlan(run=run, cluster=cluster, job=job, directory=CHECKOUT)


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.5)


def wait_for_end(plan: LaunchPlan, job_id: str) -> str:
    """The job's log, once it is over."""
    wait_until(lambda: not is_alive(slurm.states([job_id])[job_id]), f"job {job_id} has ended")
    return log_of(plan, job_id)


def log_of(plan: LaunchPlan, job_id: str) -> str:
    return (plan.folder / "logs" / f"{plan.name}-{job_id}.log").read_text(encoding="utf-8")


def is_training(run: RunConfig, step: int) -> bool:
    """Whether the run has written the metrics of so many steps."""
    file = Path(run.run_dir) / "metrics.jsonl"
    return file.exists() and len(file.read_text(encoding="utf-8").splitlines()) >= step


def assert_same_curve(run: RunConfig, other: RunConfig) -> None:
    ours, theirs = toy.metrics(run), toy.metrics(other)
    assert [line["step"] for line in ours] == list(range(1, run.train.steps + 1))
    assert ours == theirs


def rank_process(plan: LaunchPlan) -> int:
    """The process of one of the run's ranks."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(plan.run_file).encode() in words and b"srun" not in words[0]:
            return int(folder.name)
    raise AssertionError("no rank is running")


def lose(node: str) -> None:
    """Kill a node's daemon and all that runs on it. SLURM is told at once instead of after its SlurmdTimeout."""
    slurmd = int((Path(os.environ["SLURM_CONF"]).parent / "run" / f"slurmd.{node}.pid").read_text(encoding="utf-8"))
    tasks = list(_processes_on(node))
    # The steps' daemons first: they would tell srun how the tasks end.
    for process in [slurmd, *{daemon for task in tasks for daemon in _step_daemon(task)}, *tasks]:
        os.kill(process, 9)
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost"], check=True)


def bring_back(node: str) -> None:
    """Start the node again, which returns to service by registering (ReturnToService=2)."""
    subprocess.run(["slurmd", "-N", node], check=True)


def _processes_on(node: str) -> Iterator[int]:
    wanted = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={os.environ['SLURM_CONF']}".encode()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted <= set(environment):
            yield int(folder.name)


def _step_daemon(task: int) -> Iterator[int]:
    try:
        parent = int(Path(f"/proc/{task}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        name = Path(f"/proc/{parent}/comm").read_text(encoding="utf-8")
    except OSError:
        return
    if name.startswith("slurmstepd"):
        yield parent
