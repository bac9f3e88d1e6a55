"""Runs a function as every rank of a job on this machine, each rank a process of its own.

The calling process never runs Megatron itself: it stays fit to start further ranks. No rank outlives it, or a rank that
fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NamedTuple

import torch

from nemo_xtoken import errors
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.integrations.megatron.cpu_device import choose_device

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""What asks for an end with a checkpoint: a job script before its time limit, and SLURM before it preempts a job."""
SHOW_CURSOR = "\x1b[?25h"
"""A progress bar hides it, and a rank that is killed can't bring it back."""


class Outcome(NamedTuple):
    """How a rank ended: its result, or an error of `errors` by its name and message.

    trace     the traceback where the error is not the user's to mend
    has_died  whether the rank could not say so itself
    """

    result: Any = None
    error: str = ""
    message: str = ""
    trace: str = ""
    has_died: bool = False


class Task(NamedTuple):
    """What every rank does: `function` of `module`, which it imports once the device is chosen.

    It is called with `arguments` and the `init_method` of torch.distributed; RANK, WORLD_SIZE and LOCAL_RANK are set.
    """

    module: str
    function: str
    arguments: tuple[Any, ...]
    device: str

    def prepare(self) -> None:
        """Choose the device and import what is needed."""
        choose_device(self.device)
        importlib.import_module(self.module)

    def run(self, init_method: str) -> Any:
        """Do it in this process."""
        self.prepare()
        return getattr(importlib.import_module(self.module), self.function)(*self.arguments, init_method)


def run_locally(task: Task, world_size: int, names: Sequence[str] = ()) -> Any:
    """Run a task on `world_size` ranks and return what rank 0 returned, which must be picklable.

    names: what messages call the ranks, where it is more than their numbers
    Raises the XTokenError of the first rank that fails; anything else becomes one, with its traceback on stderr.
    """
    on_cpu = task.device == "cpu"
    if on_cpu:
        # Imported once, before the ranks are forked. A process that has seen CUDA must not be forked.
        task.prepare()
    context: Any = multiprocessing.get_context("fork" if on_cpu else "spawn")
    processes: list[BaseProcess] = []
    receivers: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="nemo-xtoken-") as folder:
        init_method = f"file://{folder}/rendezvous"
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_rank, args=(rank, world_size, task, init_method, sender, os.getpid()))
                process.start()
                sender.close()
                processes.append(process)
                receivers.append(receiver)
            with _forwarding_signals(processes):
                return _collect(receivers, processes, names or [f"rank {rank}" for rank in range(world_size)])[0]
        finally:
            for process in processes:
                process.kill()
                process.join()
            if sys.stdout.isatty():
                sys.stdout.write(SHOW_CURSOR)


@contextlib.contextmanager
def _forwarding_signals(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """What asks this process to stop asks the ranks, which save first."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _collect(receivers: Sequence[Connection], processes: Sequence[BaseProcess], names: Sequence[str]) -> list[Any]:
    """Results of all ranks in order; raises for the first that fails."""
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = {receiver: rank for rank, receiver in enumerate(receivers) if rank not in results}
        ready: list[Any] = wait(list(waiting))
        found = [(waiting[receiver], receiver) for receiver in ready]
        outcomes = {rank: _outcome(names[rank], receiver, processes[rank]) for rank, receiver in found}
        failures = [outcome for outcome in outcomes.values() if outcome.error]
        if failures:
            # Ranks fail because another one has died, not the other way round.
            first = min(failures, key=lambda failure: not failure.has_died)
            sys.stderr.write(first.trace)
            raise getattr(errors, first.error)(first.message)
        results.update((rank, outcome.result) for rank, outcome in outcomes.items())
    for process in processes:
        process.join()
    return [results[rank] for rank in range(len(receivers))]


def _outcome(name: str, receiver: Connection, process: BaseProcess) -> Outcome:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
    code = process.exitcode or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    message = f"{name} {how}; the same command goes on from the latest checkpoint"
    return Outcome(error=XTokenError.__name__, message=message, has_died=True)


def end_with(parent: int) -> None:
    """End this process as soon as its parent has ended, however that was."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_children_with_this() -> None:
    """Every process that this one forks from here on ends with it, and theirs with them: a writer of a checkpoint that
    outlived a killed rank would hold the run's directory."""
    forking = [0]

    def remember() -> None:
        forking[0] = os.getpid()

    os.register_at_fork(before=remember, after_in_child=lambda: end_with(forking[0]))


def _rank(rank: int, world_size: int, task: Task, init_method: str, sender: Connection, parent: int) -> None:
    end_with(parent)
    end_children_with_this()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its ranks
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))
    try:
        sender.send(Outcome(task.run(init_method)))
    except XTokenError as error:
        _fail(sender, Outcome(error=type(error).__name__, message=str(error)))
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        message = f"rank {rank} failed: {type(error).__name__}: {first_line}"
        _fail(sender, Outcome(error=XTokenError.__name__, message=message, trace=traceback.format_exc()))


def _fail(sender: Connection, outcome: Outcome) -> None:
    """Tell the parent and wait for it to end this process: to leave now would make the other ranks fail as well."""
    sys.stdout.flush()
    sender.send(outcome)
    signal.pause()
