"""SLURM's own commands: what is submitted, what has become of it, and its end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nemo_xtoken.errors import ConfigError, UnavailableError, XTokenError

GONE = "no longer known to SLURM"


def check_accepted(script: Path) -> None:
    """Raises ConfigError with SLURM's reason where it would not take the script."""
    finished = _run(["sbatch", "--test-only", str(script)])
    if finished.returncode:
        raise ConfigError(f"SLURM refuses {script}: {_reason(finished.stderr)}")


def submit(script: Path, *, after_others: bool = False) -> str:
    """Submits a script and returns the job's id; with `after_others` it waits for earlier jobs of its name."""
    arguments = ["--dependency=singleton"] if after_others else []
    finished = _run(["sbatch", "--parsable", *arguments, str(script)])
    if finished.returncode:
        raise XTokenError(f"SLURM did not take {script}: {_reason(finished.stderr)}")
    return finished.stdout.strip().partition(";")[0]


def states(job_ids: Sequence[str]) -> dict[str, str]:
    """What SLURM says of each job: a state such as RUNNING, with the reason where it waits."""
    queued = _run(["squeue", "--noheader", "--array-unique", "--states=all", "--format=%F|%T|%r"])
    if queued.returncode:
        raise XTokenError(f"squeue failed: {_reason(queued.stderr)}")
    found: dict[str, str] = {}
    for line in queued.stdout.splitlines():
        job_id, state, reason = line.strip().split("|", 2)
        found[job_id] = state if reason == "None" else f"{state} ({reason})"
    return {job_id: found.get(job_id) or _accounted(job_id) for job_id in job_ids}


def cancel(job_ids: Sequence[str]) -> None:
    """Ends the jobs, those that wait and those that run."""
    finished = _run(["scancel", *job_ids])
    if finished.returncode:
        raise XTokenError(f"scancel failed: {_reason(finished.stderr)}")


def _accounted(job_id: str) -> str:
    """The state of a job that has left the queue, where the cluster keeps accounts."""
    if shutil.which("sacct") is None:
        return GONE
    finished = _run(["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}"])
    lines = finished.stdout.split("\n")
    return lines[0].strip() or GONE if not finished.returncode else GONE


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise UnavailableError(
            f"{command[0]} is not on PATH: call this on a node of the cluster, or use --dry-run to see the script"
        )
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _reason(stderr: str) -> str:
    """The last thing that a command of SLURM's said, without its own name."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    said = [line for line in lines if "Batch job submission failed" in line] or lines or ["no reason given"]
    return said[-1].removeprefix("allocation failure: ").partition("error: ")[2] or said[-1]
