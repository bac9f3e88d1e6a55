"""Writes checkpoints through Megatron's dist_checkpointing, at once or in the background, and trusts none unread."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from torch.distributed.checkpoint.api import CheckpointException

from nemo_xtoken.errors import CheckpointError
from nemo_xtoken.integrations.megatron import checkpoint_files
from nemo_xtoken.integrations.megatron.local_ranks import STOP_SIGNALS, end_with

FULL = ("No space left on device", "Disk quota exceeded", "File too large")
CUT_SHORT = "unexpected pos"
"""What torch says of a write that the system has done in part only."""
NO_REASON = "error is caught while starting worker"
"""megatron-core 0.19 does not hand on what its writer has met."""
Sums = dict[str, str]


class CheckpointWriter:
    """Writes one checkpoint at a time. Every rank must make the same calls.

    in_background  a forked process writes and the training goes on. `poll` at every step finishes what was written;
                   `finish` waits for it
    """

    def __init__(self, run_dir: Path, *, in_background: bool) -> None:
        self.run_dir = run_dir
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._calls = AsyncCallsQueue() if in_background else None
        self._step = 0
        if in_background:
            collect_results_of_processes()
        else:
            collect_writers_results_here()

    def write(self, state: dict[str, Any], step: int, keep: int, also: Callable[[Path], None]) -> None:
        """Write the checkpoint of `step`; once it is read back as it was written, delete all but the newest `keep`.

        also  writes more files into the checkpoint's directory, at once

        Raises CheckpointError where the disk is full or gives back something else; the checkpoints before stay.
        """
        self.finish()
        self._step = step
        with self._explained():
            directory = Path(self._as_rank_0(lambda: str(checkpoint_files.start_writing(self.run_dir, step))))
            request: Any = dist_checkpointing.save(state, str(directory), async_sharded_save=True, **_strategy())
            also(directory)
            request.add_finalize_fn(partial(self._complete, directory, keep))
            if self._calls is None:
                request.execute_sync()
            else:
                self._calls.schedule_async_request(_summed(request, directory, self.rank))

    def poll(self) -> None:
        """Finish the checkpoint that is written in the background where all ranks have: an all-reduce of a number."""
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Wait for the checkpoint that is written in the background, if there is one."""
        self._finalize(blocking=True)

    def _finalize(self, *, blocking: bool) -> None:
        if self._calls is not None and self._calls.get_num_unfinalized_calls():
            with self._explained():
                self._calls.maybe_finalize_async_calls(blocking=blocking)

    def _complete(self, directory: Path, keep: int) -> None:
        """The last of what follows the writing: every rank's files are read by another rank, where there are several
        nodes on another one; only then is the checkpoint complete, and older ones go."""
        dist.barrier()
        own = checkpoint_files.sums_of_rank(directory, self.rank)
        if self.rank == 0:
            own |= checkpoint_files.sums_of_the_rest(directory)
        sums: list[Sums] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(sums, own)
        others = sums[(self.rank + self.world_size // 2) % self.world_size]
        raise_first(checkpoint_files.what_differs(directory, others), f"{directory} was written, but", self.world_size)

        def finish() -> str:
            final = checkpoint_files.finish_writing(
                directory, {name: value for part in sums for name, value in part.items()}
            )
            checkpoint_files.prune(self.run_dir, keep)
            return str(final)

        self._as_rank_0(finish)

    def _as_rank_0(self, action: Callable[[], str]) -> str:
        """What `action` returned on rank 0, on every rank; and its error likewise."""
        answer = ["", ""]
        if self.rank == 0:
            try:
                answer[0] = action()
            except OSError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0)
        if answer[1]:
            raise OSError(answer[1])
        return answer[0]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a failure to write into one line. What was begun is deleted, for it may be what fills the disk."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            if self.rank == 0:
                shutil.rmtree(checkpoint_files.directory_of_writing(self.run_dir, self._step), ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint after step {self._step} can't be written: {_reason(error)}; "
                f"{_free(self.run_dir)} are free in {self.run_dir}. {_what_is_left(self.run_dir)}; "
                "make room and start the same command again"
            ) from error


def raise_first(wrong: str | None, what: str, world_size: int) -> None:
    """Raises CheckpointError on every rank where any rank has found something wrong: an all-gather."""
    found: list[str | None] = [None] * world_size
    dist.all_gather_object(found, wrong)
    for text in found:
        if text is not None:
            raise CheckpointError(f"{what} {text}; the checkpoints before it are kept, see to the disk")


def collect_writers_results_here() -> None:
    """Saving is synchronous, so its writers report to a queue of this process. Megatron's own is kept by a manager
    process that takes seconds to start and outlives a rank that is killed."""
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        filesystem_async._results_queue = queue.Queue()


def collect_results_of_processes() -> None:
    """Writers in the background report through a manager process, as Megatron's do, which ends with this rank."""
    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(_live_as_long_as, (os.getpid(),))
    filesystem_async._results_queue = manager.Queue()


def _live_as_long_as(parent: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)


def _strategy() -> dict[str, Any]:
    """megatron-core 0.19 would write by another package, nvidia-resiliency-ext, where it is not told."""
    return {"async_strategy": "mcore"} if "async_strategy" in signature(dist_checkpointing.save).parameters else {}


def _summed(request: Any, directory: Path, rank: int) -> Any:
    """The request of a rank with something to write, whose process ends with the rank and sums what it has written."""
    if request.async_fn is None:
        return request
    return request._replace(async_fn=partial(_write_and_sum, request.async_fn, directory, rank, os.getpid()))


def _write_and_sum(
    write: Callable[..., None], directory: Path, rank: int, parent: int, *args: Any, **kwargs: Any
) -> None:
    _live_as_long_as(parent)
    write(*args, **kwargs)
    with contextlib.suppress(OSError):  # the rank sums what is missing
        checkpoint_files.leave_sums(directory, rank)


def _reason(error: BaseException) -> str:
    """The system's word for it where there is one, else the last line of what megatron-core or torch say."""
    text = str(error)
    for word in FULL:
        if word in text:
            return word
    if CUT_SHORT in text:
        return "a file was cut short, as on a full disk or beyond a quota"
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
    reason = lines[-1] if lines else type(error).__name__
    return f"{reason} (as on a full disk or beyond a quota)" if NO_REASON in reason else reason


def _free(run_dir: Path) -> str:
    return f"{shutil.disk_usage(run_dir).free / 1e9:.2f} GB"


def _what_is_left(run_dir: Path) -> str:
    latest = checkpoint_files.latest_complete(run_dir, warn=False)
    return "No checkpoint was complete before" if latest is None else f"{latest} is complete and stays"
