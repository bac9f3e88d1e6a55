"""What is asked of the cluster: a file in `launcher_configs/jobs/`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_xtoken.errors import require, require_positive

TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
"""Minutes, minutes:seconds, hours:minutes:seconds, days-hours ...: what sbatch takes."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What a node must show before a training starts on it; one that does not is excluded and the job starts anew.

    free_disk_gb  in the run's directory
    ping          whether all ranks add up a number over the network, within two minutes
    """

    free_disk_gb: float = 10.0
    ping: bool = True


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """More nodes, of another kind, in the same job: those of a teacher beside the student's.

    Its ranks follow those of the nodes before. null: as the cluster's file says.
    """

    nodes: int = 1
    partition: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "nodes")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One job, a chain of them, or an array.

    name          of the job; several of one name and user run one after another if they are in a chain
    time          limit of one job, as sbatch takes it
    command       words of what every task runs, the arguments of `nemo-xtoken`; {run} and {run_dir} stand for the
                  run's config and directory, {array_index} and {array_size} for the place in an array
    tasks         of a node, for a command that is no training; null: one. A training's are the ranks of the node
    gpus          of a node, for a command that is no training, where the cluster has GPUs
    components    further nodes of a heterogeneous job, each with resources of its own
    chain         so many jobs, each after the one before: a training that needs more than one time limit
    array         so many jobs side by side; 0: no array
    max_requeues  how often one job may start anew, after preemption, its time limit or a failure
    max_stalls    attempts in a row that may end without a newer checkpoint
    """

    name: str = "{run_name}"
    nodes: int = 1
    time: str
    command: tuple[str, ...] = ("train", "{run}")
    tasks: int | None = None
    gpus: int = 0
    components: tuple[ComponentConfig, ...] = ()
    chain: int = 1
    array: int = 0
    max_requeues: int = 20
    max_stalls: int = 3
    health: HealthConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "nodes", "chain", "max_stalls")
        require(
            TIME_LIMIT.fullmatch(self.time) is not None,
            f"time: expected a limit such as 04:00:00 or 1-12, got {self.time!r}",
        )
        require(bool(self.command), "command: expected the arguments of nemo-xtoken, such as [train, '{run}']")
        require(self.tasks is None or self.tasks > 0, f"tasks must be positive, got {self.tasks}")
        require(self.gpus >= 0, f"gpus must not be negative, got {self.gpus}")
        require(not (self.array and self.components), "SLURM has no arrays of heterogeneous jobs; set array=0")
        require(self.array >= 0, f"array must not be negative, got {self.array}")
        require(not (self.array and self.chain > 1), "expected a chain or an array, got both")
        require(self.max_requeues >= 0, f"max_requeues must not be negative, got {self.max_requeues}")

    @property
    def trains(self) -> bool:
        """Whether every rank of a run's layout is needed."""
        return self.command[0] == "train"
