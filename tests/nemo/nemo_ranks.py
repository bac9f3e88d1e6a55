"""Runs a function on forked ranks that NeMo's trainer then takes for those of torchrun."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store

from tests.distributed.ranks import run_ranks


def run_nemo_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 110) -> list[Any]:
    """`[function(*args)]` of all ranks; NeMo meets through a file, see `rendezvous`."""
    with tempfile.TemporaryDirectory(prefix="nemo-ranks-") as folder:
        return run_ranks(world_size, _rank, Path(folder), function, args, timeout=timeout)


def _rank(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    dist.barrier()
    dist.destroy_process_group()
    os.environ.update(
        TORCHELASTIC_RUN_ID="tests",
        GROUP_RANK="0",
        LOCAL_WORLD_SIZE=os.environ["WORLD_SIZE"],
        MASTER_ADDR="localhost",
        MASTER_PORT="1",
        NEMO_RENDEZVOUS=str(folder / "rendezvous"),
    )
    return function(*args)


def rendezvous() -> Store:
    """Where this rank meets the others, instead of at a port: `strategy.store`."""
    return FileStore(os.environ["NEMO_RENDEZVOUS"], int(os.environ["WORLD_SIZE"]))
