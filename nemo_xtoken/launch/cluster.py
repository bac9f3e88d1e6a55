"""What a job has to say to one SLURM cluster, whatever it runs: a file in `launcher_configs/clusters/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nemo_xtoken.errors import require, require_positive

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """A container of the pyxis plugin, which runs it by enroot.

    image       a name as `nvcr.io#nvidia/nemo:25.11`, or the path of a .sqsh file
    mounts      SOURCE:TARGET or SOURCE:TARGET:FLAGS; a run's files must lie in one, under the same path
    mount_home  whether the home directory is there as well
    """

    image: str
    mounts: tuple[str, ...] = ()
    mount_home: bool = False

    def __post_init__(self) -> None:
        for mount in self.mounts:
            source, _, target = mount.partition(":")
            require(
                source.startswith("/") and target.startswith("/"),
                f"container.mounts: expected /SOURCE:/TARGET, got {mount!r}",
            )
            require("," not in mount, f"container.mounts: a comma would part it in two, got {mount!r}")

    @property
    def targets(self) -> tuple[str, ...]:
        """Where the mounts appear in the container."""
        return tuple(mount.split(":")[1] for mount in self.mounts)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Account, resources of a node, and how ranks start there. Names are sbatch's where it has one.

    gpus_per_node        0: a cluster of CPUs, whose runs have `device: cpu`
    gpu_request          how GPUs are asked for; `none` where whole nodes are given without it
    ranks_per_node       null: one for each GPU
    signal_lead_seconds  how long before the time limit a job is told to save; more than a checkpoint takes
    launcher             srun starts every rank itself; torchrun starts the ranks of a node from one task
    mpi                  srun's --mpi: pmix, pmi2, none; null is the cluster's default
    executable           the command as it is called on a node, in the container where there is one
    prologue             shell lines of your own that come first: module load, conda activate. Copied as they are
    environment          variables of NCCL, InfiniBand, Transformer Engine, CUDA ...; values are quoted
    secrets              names of variables that must be set where `launch` is called. Their values are written nowhere
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    comment: str | None = None
    gpus_per_node: int
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    memory: str | None = None
    exclusive: bool = True
    signal_lead_seconds: int = 300
    launcher: Literal["srun", "torchrun"] = "srun"
    mpi: str | None = None
    sbatch_arguments: tuple[str, ...] = ()
    srun_arguments: tuple[str, ...] = ()
    executable: str = "nemo-xtoken"
    prologue: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: tuple[str, ...] = ()
    container: ContainerConfig | None = None

    def __post_init__(self) -> None:
        require(self.gpus_per_node >= 0, f"gpus_per_node must not be negative, got {self.gpus_per_node}")
        require(
            self.gpus_per_node > 0 or self.ranks_per_node is not None,
            "ranks_per_node must be set where gpus_per_node is 0",
        )
        require(self.ranks > 0, f"ranks_per_node must be positive, got {self.ranks_per_node}")
        require_positive(self, "signal_lead_seconds")
        for name in (*self.environment, *self.secrets):
            require(VARIABLE.fullmatch(name) is not None, f"{name!r} is not the name of an environment variable")
        for name in self.environment:
            require(
                SECRET.search(name) is None,
                f"environment.{name} looks like a secret, and this file is copied into scripts and logs: list its "
                "name under `secrets` and set it in your shell",
            )

    @property
    def ranks(self) -> int:
        """Ranks of a node."""
        return self.gpus_per_node if self.ranks_per_node is None else self.ranks_per_node

    @property
    def tasks_per_node(self) -> int:
        """What srun starts on a node: its ranks, or one torchrun."""
        return 1 if self.launcher == "torchrun" else self.ranks
