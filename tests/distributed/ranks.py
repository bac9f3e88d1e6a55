"""Runs a function on several forked gloo ranks and hands back what each returned."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PR_SET_PDEATHSIG = 1


class RankTraceback(Exception):
    """Where on its rank an error was raised; shown as the cause of the error itself."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """`[function(*args)]` of ranks 0 .. world_size - 1, each in a forked process of one gloo group.

    Results must be picklable; return detached tensors. The first error of a rank is raised here with the rank's
    traceback as its cause. Raises TimeoutError when not every rank is done after `timeout` seconds. No rank outlives
    the call.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        receivers: list[Connection] = []
        processes: list[BaseProcess] = []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, world_size, Path(folder), sender, function, args))
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            return _collect(receivers, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.join(timeout=0.5)
                process.kill()
                process.join()


def _collect(receivers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        pending = [r for i, r in enumerate(receivers) if i not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [i for i in range(len(receivers)) if i not in results]
            raise TimeoutError(f"ranks {missing} were not done in time")
        for receiver in ready:
            rank = receivers.index(receiver)  # type: ignore[arg-type]
            results[rank] = _receive(rank, receivers[rank])
    return [results[rank] for rank in range(len(receivers))]


def _receive(rank: int, receiver: Connection) -> Any:
    try:
        result, error, trace = pickle.loads(receiver.recv_bytes())  # noqa: S301
    except EOFError:
        raise RuntimeError(f"rank {rank} died without a word") from None
    if error is not None:
        raise error from RankTraceback(f"rank {rank}: {trace}")
    return result


def _rank(
    rank: int, world_size: int, folder: Path, sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
        result = function(*args)
        dist.barrier()
        # By value: multiprocessing would share a tensor's memory, which ends with this process.
        message = pickle.dumps((result, None, ""))
    except BaseException as error:
        sender.send_bytes(_message_of(error, traceback.format_exc()))
        return
    sender.send_bytes(message)
    dist.destroy_process_group()


def _message_of(error: BaseException, trace: str) -> bytes:
    try:
        return pickle.dumps((None, error, trace))
    except Exception:  # an error that can't be pickled is told by its text
        return pickle.dumps((None, RuntimeError(str(error)), trace))
