"""Starts a training: as one rank of a job that torchrun or srun started, or with local ranks of its own.

Knows nothing of Megatron until a rank starts, so that wrong input is told at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.local_ranks import Task, run_locally
from nemo_xtoken.integrations.megatron.run_dir import adopt_config, check_config, locked, steps_done
from nemo_xtoken.integrations.megatron.run_starts import recorded


def launch(config: RunConfig) -> None:
    """Train `config` to its last step, resuming what is in its run directory; a finished run is only reported.

    Under torchrun or srun this process becomes its rank. Otherwise every rank is a process on this machine. Raises
    XTokenError; the first rank that fails ends the others.
    """
    rank = rank_of_this_process()
    run_dir = Path(config.run_dir)
    with ExitStack() as stack:
        if rank:
            check_config(config)  # so that all ranks end with the same exit code
        else:
            stack.enter_context(locked(run_dir))
            adopt_config(config)
        done = steps_done(run_dir)
        if done >= config.train.steps:
            if not rank:
                sys.stdout.write(f"{run_dir} is finished: {done} steps are done; raise train.steps to go on\n")
            return
        if not rank:
            stack.enter_context(recorded(run_dir, done, config.train.steps))
        task = Task("nemo_xtoken.integrations.megatron.train_loop", "run_rank", (config,), config.device)
        run_task(task, config.rank_names())


def run_task(task: Task, ranks: Sequence[str]) -> object:
    """Run a task of these ranks, by name: as this process's one under torchrun or srun, else on local ones."""
    if rank_of_this_process() is None:
        return run_locally(task, len(ranks), ranks)
    return task.run("env://")


def rank_of_this_process() -> int | None:
    """This process's rank in a job of torchrun or srun, None outside of one. srun's variables become torchrun's."""
    environment = os.environ
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise ConfigError(
                "under srun MASTER_ADDR and MASTER_PORT must be set: the first node's name and a free port"
            )
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    return int(environment["RANK"]) if "RANK" in environment else None
