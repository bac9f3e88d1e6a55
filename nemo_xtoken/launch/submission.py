"""From a plan to jobs: the files are written, SLURM is asked whether it would take them, and they are submitted."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from nemo_xtoken.config_io import save_run
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.launch import records, slurm
from nemo_xtoken.launch.plan import LaunchPlan
from nemo_xtoken.launch.records import Submission
from nemo_xtoken.launch.render import render
from nemo_xtoken.whole_file import write_whole


def launch(plan: LaunchPlan) -> list[Submission]:
    """Submits the plan's jobs and records them. Raises XTokenError for anything wrong in the plan before submitting."""
    script = render(plan)
    _check_secrets(plan)
    plan.check_files()
    (plan.folder / "logs").mkdir(parents=True, exist_ok=True)
    _check_not_running(plan)
    save_run(plan.run, plan.run_file)
    write_whole(plan.script, script)
    slurm.check_accepted(plan.script)
    return [_submit(plan, is_follower=number > 0) for number in range(plan.job.chain)]


def _submit(plan: LaunchPlan, *, is_follower: bool) -> Submission:
    job_id = slurm.submit(plan.script, after_others=is_follower)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submission = Submission(job_id, plan.name, str(plan.script), now)
    records.record(plan.folder, submission)
    return submission


def _check_secrets(plan: LaunchPlan) -> None:
    missing = [name for name in plan.cluster.secrets if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"secrets: {', '.join(missing)} must be set in this shell; the job gets them from there")


def _check_not_running(plan: LaunchPlan) -> None:
    """Two trainings in one directory would end each other's: the second one is refused here already."""
    if not plan.job.trains or not (plan.folder / records.FILE).is_file():
        return
    earlier = {job.job_id: job for job in records.submissions(plan.folder) if job.name == plan.name}
    alive = [job_id for job_id, state in slurm.states(list(earlier)).items() if is_alive(state)]
    if alive:
        raise ConfigError(
            f"{plan.run_dir}: job {', '.join(alive)} of this run is still queued or running; "
            f"`nemo-xtoken launch cancel {plan.run_dir}` ends it"
        )


def is_alive(state: str) -> bool:
    """Whether a job of this state will still do something."""
    return state.split(" ")[0] in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED"}
