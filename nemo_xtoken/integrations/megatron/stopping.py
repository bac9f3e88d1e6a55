"""What ends a training early: a signal, on which all ranks save, or a hang, in which every rank says where it is."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.local_ranks import STOP_SIGNALS


class StopRequest:
    """Whether a signal has asked any rank of the job to save and end."""

    def __init__(self) -> None:
        self._heard = 0

    @property
    def heard(self) -> int:
        """The signal that this rank has heard, 0 for none."""
        return self._heard

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Hear the signals instead of dying of them."""
        before = {number: signal.signal(number, self._hear) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = number

    def agreed(self, layout: Layout) -> signal.Signals | None:
        """The signal that any rank has heard, the same on every rank: one all-reduce of a number.

        Ranks hear a signal at different steps, and all have to save the same one.
        """
        heard = torch.tensor([self._heard], dtype=torch.int64, device=layout.device)
        dist.all_reduce(heard, dist.ReduceOp.MAX)
        return signal.Signals(int(heard)) if int(heard) else None


class Watchdog:
    """Ends this rank with exit code 1 when a step takes longer than `seconds`; all its stacks go to stderr before.

    seconds  0: never
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def feed(self) -> None:
        """Begin to count anew."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Count until the end of the context."""
        self.feed()
        try:
            yield self
        finally:
            faulthandler.cancel_dump_traceback_later()
