"""Numbered tasks on several forked processes, which do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from nemo_xtoken.errors import XTokenError

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2

Report = Callable[[int], None]
"""Called with the progress since the last call."""


def run_tasks(tasks: Sequence[int], work: Callable[[int, Report], None], processes: int, report: Report) -> None:
    """Call `work(task, report)` for every task, in their order, on at most `processes` forked processes.

    With one process or one task it runs in this one. The first error ends all and is raised: an XTokenError or OSError
    as it is, a worker that dies or fails otherwise as an XTokenError.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for task in tasks:
            work(task, report)
        return
    context: Any = multiprocessing.get_context("fork")
    next_task, progress = context.Value("q", 0), context.RawArray("q", processes)
    workers: list[BaseProcess] = []
    receivers: list[Connection] = []
    try:
        for i in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (tasks, work, next_task, progress, i, sender, os.getpid())
            worker = context.Process(target=_worker, args=arguments)
            worker.start()
            sender.close()
            workers.append(worker)
            receivers.append(receiver)
        _watch(workers, receivers, progress, report)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _watch(workers: Sequence[BaseProcess], receivers: Sequence[Connection], progress: Any, report: Report) -> None:
    """Until all workers have ended; raises for the first that failed."""
    running = dict(zip(receivers, workers, strict=True))
    reported = 0
    while running:
        ready: list[Any] = wait(list(running), timeout=POLL_SECONDS)
        for receiver in ready:
            _check(receiver, running.pop(receiver))
        done = sum(progress)
        if done > reported:
            report(done - reported)
            reported = done


def _check(receiver: Connection, worker: BaseProcess) -> None:
    try:
        raise receiver.recv()
    except EOFError:
        worker.join()
    code = worker.exitcode or 0
    if code < 0:
        raise XTokenError(
            f"a worker was ended by {signal.Signals(-code).name}, for want of memory perhaps; "
            "the same command with fewer workers goes on where it was"
        )
    if code:
        raise XTokenError(f"a worker ended with exit code {code}; the same command goes on where it was")


def _worker(
    tasks: Sequence[int],
    work: Callable[[int, Report], None],
    next_task: Any,
    progress: Any,
    i: int,
    sender: Connection,
    parent: int,
) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its workers
    gc.freeze()  # what the parent made, such as vocabularies, is never freed here: not to be looked through or copied

    def report(amount: int) -> None:
        progress[i] += amount

    try:
        while (task := _take(next_task)) < len(tasks):
            work(tasks[task], report)
    except (XTokenError, OSError) as error:
        sender.send(error)
    except Exception as error:
        traceback.print_exc()
        sender.send(XTokenError(f"a worker failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"))


def _take(next_task: Any) -> int:
    with next_task.get_lock():
        task = next_task.value
        next_task.value += 1
    return task
