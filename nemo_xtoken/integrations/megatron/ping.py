"""Whether all ranks of a job reach each other, before a training starts on them."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from nemo_xtoken.errors import XTokenError
from nemo_xtoken.integrations.megatron.launcher import rank_of_this_process

PATIENCE = timedelta(seconds=100)


def ping(device: str) -> None:
    """Sum a number over all ranks, by NCCL on "cuda" and gloo on "cpu". Raises XTokenError where that fails."""
    rank = rank_of_this_process()
    if rank is None:
        return
    world_size = int(os.environ["WORLD_SIZE"])
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        total = torch.ones(1, device=device)
        dist.all_reduce(total)
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise XTokenError(f"rank {rank} of {world_size} can't reach the others: {reason}") from error
    if int(total) != world_size:
        raise XTokenError(f"rank {rank}: {world_size} ranks add up to {int(total)}; the network or a GPU is broken")
    sys.stdout.write(f"rank {rank} of {world_size}: all ranks answer\n")
