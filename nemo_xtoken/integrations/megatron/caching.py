"""Starts the storing of teachers, as `launcher` starts a training. Knows nothing of Megatron until a rank starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.launcher import rank_of_this_process, run_task
from nemo_xtoken.integrations.megatron.local_ranks import Task
from nemo_xtoken.teachers.cache import Storage

MODULE = "nemo_xtoken.integrations.megatron.teacher_cache"


@dataclass(frozen=True, kw_only=True)
class CacheJob:
    """What to store, and which part of it this job does.

    teachers      names of those to store; none: all of the run's
    part          (I, N): every N-th shard from the I-th on
    shard_tokens  least tokens of a shard
    """

    storage: Storage
    teachers: tuple[str, ...] = ()
    part: tuple[int, int] = (0, 1)
    shard_tokens: int = 65536
    seed: int = 0


class Filled(NamedTuple):
    """One cache after the job: what it holds, and the shards that this job wrote and those that nobody has written."""

    directory: str
    tokens: int
    shards: int
    written: int
    missing: int
    bytes: int


def fill_caches(config: RunConfig, job: CacheJob) -> list[Filled] | None:
    """Store a run's teachers for all data that it reads, beside that data; None but on the first rank.

    Under torchrun or srun this process becomes its rank, otherwise every rank is a process on this machine. Raises
    XTokenError; what was written stays, and another call goes on.
    """
    check_job(config, job)
    ranks = config.rank_names()[: config.parallel.world_size]
    filled = run_task(Task(MODULE, "run_rank", (config, job), config.device), ranks)
    return None if rank_of_this_process() else cast("list[Filled]", filled)


def check_job(config: RunConfig, job: CacheJob) -> None:
    """Raises ConfigError for teachers that the run has not."""
    names = [teacher.name for teacher in config.teachers]
    unknown = [name for name in job.teachers if name not in names]
    if unknown or not names:
        raise ConfigError(f"the run has no teacher {', '.join(unknown)}: it has {', '.join(names) or 'none at all'}")
