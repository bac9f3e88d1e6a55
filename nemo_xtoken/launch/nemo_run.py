"""nemo-run's SlurmExecutor from the files of a cluster and of a job, for those who start their runs with nemo-run."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.config_io import load
from nemo_xtoken.errors import UnavailableError, require
from nemo_xtoken.launch.cluster import ClusterConfig
from nemo_xtoken.launch.job import JobConfig


def slurm_executor(
    cluster: str | Path, job: str | Path, job_dir: str | Path, overrides: Sequence[str] = (), **changes: Any
) -> Any:
    """A nemo_run.SlurmExecutor with what `nemo-xtoken launch` would ask of SLURM for a training, from this machine.

    Args:
        cluster: a file as in launcher_configs/clusters.
        job: a file as in launcher_configs/jobs, of one training: nodes, time and max_requeues are taken from it.
        job_dir: where nemo-run keeps scripts and logs, on a file system of all nodes.
        overrides: `cluster.KEY=value` and `job.KEY=value`.
        changes: fields of SlurmExecutor that are to be others, such as `tunnel` or `packager`.

    Secrets are in no field: the script demands their names, and nodes get them from the submitting shell. Raises
    ConfigError for what nemo-run has no word for, UnavailableError without nemo-run.
    """
    try:
        nemo_run: Any = importlib.import_module("nemo_run")
    except ModuleNotFoundError as error:
        raise UnavailableError("nemo-run is not installed; pip install nemo-run, or use nemo-xtoken launch") from error
    fields = executor_fields(
        load(ClusterConfig, Path(cluster), _for("cluster.", overrides)),
        load(JobConfig, Path(job), _for("job.", overrides)),
    )
    here = {"tunnel": nemo_run.LocalTunnel(job_dir=str(job_dir)), "packager": nemo_run.Packager()}
    return nemo_run.SlurmExecutor(**{**fields, **here, **changes})


def executor_fields(cluster: ClusterConfig, job: JobConfig) -> dict[str, Any]:
    """The fields of a SlurmExecutor.

    nemo-run writes variables into its script unquoted and their names in capitals, and its script runs under `set -x`:
    values are quoted here, other names are exported by a line of their own, and secrets are never expanded.

    Ranks hear the signal before the time limit themselves, save and end with 85, whereupon nemo-run's script requeues.
    """
    _check(cluster, job)
    return {
        **_resources(cluster),
        **_container(cluster),
        "nodes": job.nodes,
        "time": job.time,
        "retries": job.max_requeues,
        "job_name_prefix": "nemo-xtoken.",
        "signal": f"USR1@{cluster.signal_lead_seconds}",
        # After nemo-run's own: ranks that have saved end one after another.
        "srun_args": ["--kill-on-bad-exit=0", "--wait=30", *_container_srun(cluster), *cluster.srun_arguments],
        "additional_parameters": _additional(cluster),
        "env_vars": {name: shlex.quote(value) for name, value in cluster.environment.items() if name.isupper()},
        "setup_lines": "\n".join(_setup_lines(cluster)),
        "launcher": "torchrun" if cluster.launcher == "torchrun" else None,
    }


def _check(cluster: ClusterConfig, job: JobConfig) -> None:
    require(job.trains, f"expected the file of a training, got one of `{' '.join(job.command)}`")
    require(job.chain == 1, "nemo-run has no chains: set job.chain=1 and use its `dependencies`, or nemo-xtoken launch")
    require(not job.components, "nemo-run takes an executor for each component: set job.components=[] and make several")
    require(cluster.account is not None, "nemo-run needs an account: set cluster.account")


def _resources(cluster: ClusterConfig) -> dict[str, Any]:
    gpus, ranks = cluster.gpus_per_node, cluster.ranks // cluster.tasks_per_node
    return {
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "comment": cluster.comment,
        "ntasks_per_node": cluster.tasks_per_node,
        "torchrun_nproc_per_node": cluster.ranks if cluster.launcher == "torchrun" else None,
        "cpus_per_task": None if cluster.cpus_per_rank is None else cluster.cpus_per_rank * ranks,
        "mem": cluster.memory,
        "exclusive": True if cluster.exclusive else None,
        "gpus_per_node": gpus if gpus and cluster.gpu_request == "gpus-per-node" else None,
        "gres": f"gpu:{gpus}" if gpus and cluster.gpu_request == "gres" else None,
    }


def _container(cluster: ClusterConfig) -> dict[str, Any]:
    container = cluster.container
    return {} if container is None else {"container_image": container.image, "container_mounts": [*container.mounts]}


def _container_srun(cluster: ClusterConfig) -> list[str]:
    mpi = [] if cluster.mpi is None else [f"--mpi={cluster.mpi}"]
    if cluster.container is None:
        return mpi
    return [*mpi, "--container-mount-home" if cluster.container.mount_home else "--no-container-mount-home"]


def _additional(cluster: ClusterConfig) -> dict[str, Any]:
    """sbatch's options that the executor has no field for."""
    options: dict[str, Any] = {"requeue": True, "kill_on_invalid_dep": "yes"}
    if cluster.reservation is not None:
        options["reservation"] = cluster.reservation
    for argument in cluster.sbatch_arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        options[name] = value or True
    return options


def _setup_lines(cluster: ClusterConfig) -> list[str]:
    """What the script does before it starts the ranks, which meet on the first node."""
    return [
        *cluster.prologue,
        *(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items() if not name.isupper()),
        *(
            f'[ -n "${{{name}:+set}}" ] || {{ echo "{name} must be set where the job is submitted"; exit 2; }}'
            for name in cluster.secrets
        ),
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        "export MASTER_ADDR MASTER_PORT",
    ]


def _for(prefix: str, overrides: Sequence[str]) -> list[str]:
    return [override.removeprefix(prefix) for override in overrides if override.startswith(prefix)]
