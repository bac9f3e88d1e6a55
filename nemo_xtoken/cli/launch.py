"""`nemo-xtoken launch RUN`, and `launch status`, `logs`, `cancel` for what was launched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from nemo_xtoken.cli.console import Json, print_json, stdout
from nemo_xtoken.errors import ConfigError, XTokenError

if TYPE_CHECKING:
    from nemo_xtoken.launch import LaunchPlan


class _SubmitsByDefault(TyperGroup):
    """`launch RUN ...` means `launch submit RUN ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args.insert(0, "submit")
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_SubmitsByDefault, help="Run on a SLURM cluster: `launch RUN --cluster FILE --job FILE`.")
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run config, or a run's directory.")]


@app.command("submit")
def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run config in YAML.")],
    cluster: Annotated[Path, typer.Option(help="A cluster's file, as in launcher_configs/clusters.")],
    job: Annotated[Path, typer.Option(help="A job's file, as in launcher_configs/jobs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="What to change: keys of the run, cluster.KEY or job.KEY."),
    ] = None,
    precision: Annotated[
        Path | None, typer.Option(help="More of the run's keys, as in launcher_configs/precision.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
) -> None:
    """Check a run against a cluster and submit it; the script stays in the run's directory, to be read."""
    from nemo_xtoken.launch.render import render
    from nemo_xtoken.launch.submission import launch

    plan = _plan(run, cluster, job, precision, overrides or [])
    if dry_run:
        sys.stdout.write(render(plan))
        return
    for submission in launch(plan):
        stdout.print(f"job {submission.job_id}: {submission.name}", soft_wrap=True)
    stdout.print(f"{plan.script}", soft_wrap=True)


@app.command("status")
def status(run: Run, json: Json = False) -> None:
    """What has become of a run's jobs, and how far the run is."""
    from nemo_xtoken.launch import records, slurm

    folder = _folder(run)
    jobs = records.submissions(folder)
    states = slurm.states([job.job_id for job in jobs])
    done, steps = _progress(folder)
    if json:
        listed = [{"id": job.job_id, "name": job.name, "state": states[job.job_id]} for job in jobs]
        print_json({"jobs": listed, "saved_steps": done, "steps": steps})
        return
    table = Table("job", "name", "submitted", "state", box=None)
    for job in jobs:
        table.add_row(job.job_id, job.name, job.submitted, states[job.job_id])
    stdout.print(table)
    stdout.print(f"{done:,} of {steps:,} steps are saved")


@app.command("logs")
def logs(
    run: Run,
    rank: Annotated[int, typer.Option(min=0, help="Whose output, beside the job's own.")] = 0,
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines of each.")] = 20,
) -> None:
    """The last lines of the newest job's log, and of one rank's in its newest attempt."""
    from nemo_xtoken.launch import records

    folder = _folder(run)
    newest = records.submissions(folder)[-1]
    # Times of change order attempts; names would put attempt 10 before attempt 2.
    found = [*folder.glob(f"logs/*-{newest.job_id}.log"), *folder.glob(f"logs/*-{newest.job_id}_*.log")]
    ranks = sorted(folder.glob(f"logs/*-{newest.job_id}-*-rank{rank}.log"), key=lambda path: path.stat().st_mtime)
    if not found and not ranks:
        raise XTokenError(f"job {newest.job_id} has not written a log yet; see `nemo-xtoken launch status {run}`")
    for path in (*found, *ranks[-1:]):
        stdout.print(f"== {path}", style="bold", soft_wrap=True)
        last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        sys.stdout.write("".join(f"{line}\n" for line in last))


@app.command("cancel")
def cancel(run: Run) -> None:
    """End a run's jobs; checkpoints stay, and another launch goes on from them."""
    from nemo_xtoken.launch import records, slurm
    from nemo_xtoken.launch.submission import is_alive

    jobs = records.submissions(_folder(run))
    alive = [job_id for job_id, state in slurm.states([job.job_id for job in jobs]).items() if is_alive(state)]
    if alive:
        slurm.cancel(alive)
    stdout.print(f"cancelled: {', '.join(alive)}" if alive else "no job of this run is queued or running")


@app.command("check-node", hidden=True)
def check_node(
    gpus: Annotated[int, typer.Option()] = 0,
    free_disk_gb: Annotated[float, typer.Option()] = 0.0,
    directory: Annotated[Path, typer.Option()] = Path(),
) -> None:
    """Say what is wrong with this node, a line for each fault; part of every job with a health check."""
    from nemo_xtoken.launch.node_check import faults, node_name

    for fault in faults(gpus, directory, free_disk_gb):
        sys.stdout.write(f"unhealthy node {node_name()}: {fault}\n")


@app.command("ping", hidden=True)
def ping(device: Annotated[str, typer.Option()] = "cuda") -> None:
    """Add up a number over all ranks of this job; part of every job with a health check."""
    from nemo_xtoken.integrations.megatron.ping import ping

    ping(device)


def _plan(run: Path, cluster: Path, job: Path, precision: Path | None, overrides: list[str]) -> LaunchPlan:
    from nemo_xtoken.config_io import load, load_run
    from nemo_xtoken.launch import ClusterConfig, JobConfig, LaunchPlan

    return LaunchPlan(
        run=load_run(run, _overrides(overrides, ""), [precision] if precision else []),
        cluster=load(ClusterConfig, cluster, _overrides(overrides, "cluster.")),
        job=load(JobConfig, job, _overrides(overrides, "job.")),
        directory=Path.cwd(),
    )


def _overrides(overrides: list[str], prefix: str) -> list[str]:
    """Those for the cluster or the job, without the prefix; without one, those for the run."""
    if prefix:
        return [override.removeprefix(prefix) for override in overrides if override.startswith(prefix)]
    return [override for override in overrides if not override.startswith(("cluster.", "job."))]


def _progress(folder: Path) -> tuple[int, int]:
    """The step of a run's newest finished checkpoint, 0 without one, and the steps that it is to do."""
    from nemo_xtoken.config_io import load_run
    from nemo_xtoken.integrations.megatron.run_dir import steps_done

    return steps_done(folder.parent), load_run(folder / "run.yaml").train.steps


def _folder(run: Path) -> Path:
    """Where the launches of a run are recorded."""
    from nemo_xtoken.config_io import load_run

    if run.is_dir():
        return run / "launch"
    if not run.exists():
        raise ConfigError(f"{run}: expected a run config or a run's directory, found neither")
    return Path(load_run(run).run_dir) / "launch"
