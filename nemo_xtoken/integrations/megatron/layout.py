"""Starts torch.distributed and Megatron's process groups for one rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.distributed.distributed_c10d import Store

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.errors import ConfigError, UnavailableError

TIMEOUT = timedelta(minutes=10)
"""Of a collective."""


@dataclass(frozen=True)
class Layout:
    """Where this rank stands in Megatron's grid, and its groups.

    groups   Megatron's collection; batches are cut over `dp`, and are the same on every rank of `tp`, `pp` and `cp`
    device   where this rank's tensors live
    """

    parallel: ParallelConfig
    device: torch.device
    groups: ProcessGroupCollection

    @property
    def rank(self) -> int:
        """Number of this rank among those of its model."""
        return dist.get_rank()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds the tokens."""
        return self.groups.pp.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the final hidden states, and so the loss and the teacher."""
        return self.groups.pp.rank() == self.groups.pp.size() - 1

    def teacher_groups(self) -> ProcessGroupCollection:
        """The student's groups for a teacher that is not cut into pipeline stages. Every rank must call it.

        The teacher shares the student's tp, cp and dp groups; with pipeline stages it lives whole on the last one, so
        its pipeline group is the rank alone.
        """
        if self.groups.pp.size() == 1:
            return self.groups
        alone: Any = dist.new_subgroups(group_size=1)[0]
        groups = ProcessGroupCollection.use_mpu_process_groups()
        groups.pp = groups.embd = groups.pos_embd = alone
        groups.mp = groups.tp
        return groups


class World(NamedTuple):
    """Ranks that run one model of a job where others run others: they meet in `store`, as `rank` of `size`."""

    store: Store
    rank: int
    size: int
    timeout: timedelta = TIMEOUT


def start(
    parallel: ParallelConfig, device: str, seed: int, init_method: str = "env://", world: World | None = None
) -> Layout:
    """Join the job as the rank that RANK, WORLD_SIZE and LOCAL_RANK name; gloo on "cpu", nccl on "cuda".

    A process group that is already there is used as it is. Raises ConfigError when the number of ranks is not that of
    the layout, UnavailableError for "cuda" without a GPU.

    world: the ranks that belong to the layout, where they are not all ranks of the job
    """
    rank_device = _choose_device(device)
    backend = "gloo" if device == "cpu" else "nccl"
    if world is not None:
        store, rank, size, timeout = world
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    elif not dist.is_initialized():
        _check_world_size(int(os.environ.get("WORLD_SIZE", "1")), parallel)
        dist.init_process_group(
            backend=backend,
            init_method=init_method,
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            timeout=TIMEOUT,
        )
    _check_world_size(dist.get_world_size(), parallel)
    groups = make_groups(parallel)
    _seed(seed, device)
    return Layout(parallel, rank_device, groups)


def make_groups(parallel: ParallelConfig) -> ProcessGroupCollection:
    """Make Megatron's groups of a layout over all ranks, and put them in place as the global ones."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_size(parallel),
    )
    return ProcessGroupCollection.use_mpu_process_groups()


def virtual_pipeline_size(parallel: ParallelConfig) -> int | None:
    """Megatron's way to say it: None where a stage's layers are in one piece."""
    size = parallel.virtual_pipeline_model_parallel_size
    return size if size > 1 else None


def stop() -> None:
    """Leave the job."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _check_world_size(world_size: int, parallel: ParallelConfig) -> None:
    if world_size != parallel.world_size:
        raise ConfigError(
            f"the layout needs {parallel.world_size} ranks (tensor {parallel.tensor_model_parallel_size} x pipeline "
            f"{parallel.pipeline_model_parallel_size} x context {parallel.context_parallel_size} x data "
            f"{parallel.data_parallel_size}), but the job has {world_size}; change parallel or the number of processes"
        )


def _choose_device(device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnavailableError("device: cuda needs a GPU and this machine shows none; set device=cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def _seed(seed: int, device: str) -> None:
    torch.manual_seed(seed)
    # The tracker keeps CUDA generator states; the inference one keeps none, which is right where there is no dropout.
    model_parallel_cuda_manual_seed(seed, inference_rng_tracker=device == "cpu", force_reset_rng=True)
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
