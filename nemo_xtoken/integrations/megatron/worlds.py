"""A job of the student's ranks and those of remote teachers: each model has a torch.distributed world of its own.

Megatron takes the default process group for all ranks there are: in its layouts, checkpoints and optimizer. So the
ranks of each model make a default group of their own, and those of two models talk over `teachers.link`. A rank's
model follows from its number alone: the student's come first, then those of each remote teacher in the config's order.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.integrations.megatron.layout import TIMEOUT, World
from nemo_xtoken.teachers.routes import Grid

START_PATIENCE = timedelta(minutes=30)
"""What ranks may differ by until all have loaded their models."""
IDLE_PATIENCE = timedelta(days=1)
"""How long a teacher waits for requests: the student may validate and save meanwhile."""


@dataclass(frozen=True)
class Job:
    """A job with remote teachers, as one of its ranks sees it.

    rank      of this process
    store     where all ranks of the job meet
    student   the student's ranks
    teachers  those of each remote teacher, by its number in the config
    names     of all ranks, without their nodes
    """

    rank: int
    store: Store
    student: Grid
    teachers: dict[int, Grid]
    names: list[str]

    @property
    def teacher(self) -> int | None:
        """The number of the teacher whose rank this is, None for the student's."""
        return next((number for number, grid in self.teachers.items() if self.rank in grid.ranks), None)

    @property
    def own(self) -> Grid:
        """The ranks of this rank's model."""
        return self.student if self.teacher is None else self.teachers[self.teacher]

    @property
    def world(self) -> World:
        """This rank among those of its model."""
        name = "student" if self.teacher is None else f"teacher-{self.teacher}"
        # A teacher's ranks wait for the next request in a collective.
        timeout = TIMEOUT if self.teacher is None else IDLE_PATIENCE
        ranks = self.own.ranks
        return World(PrefixStore(name, self.store), ranks.index(self.rank), len(ranks), timeout)

    def name_of(self, rank: int) -> str:
        """A rank as errors name it, with its node."""
        return f"{self.names[rank]} on {self.get(f'node/{rank}')}"

    def tell(self, key: str, value: str) -> None:
        """Let all ranks know something, once."""
        self.store.set(key, value)

    def get(self, key: str) -> str:
        """What a rank has told, or will tell. Raises XTokenError where it does not within `START_PATIENCE`."""
        try:
            self.store.wait([key], START_PATIENCE)
            return self.store.get(key).decode()
        except RuntimeError as error:
            raise XTokenError(f"{self.names[self.rank]} waited in vain for the others to tell {key!r}") from error


def join(config: RunConfig, init_method: str) -> Job | None:
    """Meet the other ranks of the job as the one that RANK and WORLD_SIZE name; None for a run without remote teachers.

    Raises ConfigError where the job has another number of ranks than the student and the teachers.
    """
    if not any(teacher.num_ranks for teacher in config.teachers):
        return None
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != config.world_size:
        raise ConfigError(
            f"the run needs {config.world_size} ranks, {config.parallel.world_size} of the student and "
            f"{config.world_size - config.parallel.world_size} of its remote teachers, but the job has {world_size}; "
            "change parallel, teachers.*.parallel or the number of processes"
        )
    store, _, _ = next(rendezvous(init_method, rank, world_size, timeout=START_PATIENCE))
    job = Job(rank, store, Grid(config.parallel), _teachers(config), config.rank_names())
    job.tell(f"node/{rank}", os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    return job


def _teachers(config: RunConfig) -> dict[int, Grid]:
    first, grids = config.parallel.world_size, dict[int, Grid]()
    for number, teacher in enumerate(config.teachers):
        if teacher.num_ranks:
            grids[number] = Grid(teacher.own_layout, first)
        first += teacher.num_ranks
    return grids
