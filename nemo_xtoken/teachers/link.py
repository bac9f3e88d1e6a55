"""A connection between one rank of the student and one of a teacher, in a job whose models have worlds of their own.

Each pair is a gloo group of two, so that the number of connections grows with the pairs that talk, and a failure has a
name. Tensors go through host memory, on GPUs too: a hidden state is small, no collective of NCCL can wait for it in a
circle, and a peer that is gone ends one receive instead of the process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from nemo_xtoken.errors import XTokenError

SOURCE = re.compile(r"^\[[^\]]*\] ")
GOES_ON = "the same command goes on from the latest checkpoint"

Result = TypeVar("Result")


class Link:
    """Sends and receives messages, in order, to and from one other rank; neither waits for the other side at once.

    peer      who that is, as errors name it
    patience  seconds that one operation may take
    bytes_received  of all messages that have arrived here
    """

    def __init__(self, store: Store, name: str, is_first: bool, peer: str, patience: float) -> None:
        """Connect. Both sides call it with the same `name`, one of them as the first.

        Raises XTokenError where the peer does not come.
        """
        self.peer, self.patience, self.bytes_received = peer, patience, 0
        rank, timeout = 0 if is_first else 1, timedelta(seconds=patience)
        own_store = PrefixStore(name, store)
        self._group: Any = attempt(lambda: dist.ProcessGroupGloo(own_store, rank, 2, timeout), peer, patience)
        self._other = 1 - rank

    def send(self, message: Tensor) -> Transfer:
        """Begin to send; `message`, on the CPU, must not be changed before it is done.

        It leaves when the other side receives.
        """
        work = attempt(lambda: self._group.send([message], self._other, 0), self.peer, self.patience)
        return Transfer(self, work, message)

    def receive(self, message: Tensor) -> Transfer:
        """Begin to receive into `message`, on the CPU, which has the size of what is sent."""
        work = attempt(lambda: self._group.recv([message], self._other, 0), self.peer, self.patience)
        return Transfer(self, work, message, is_received=True)


class Transfer:
    """A message on its way."""

    def __init__(self, link: Link, work: dist.Work, message: Tensor, *, is_received: bool = False) -> None:
        self._link, self._work, self._message, self._is_received = link, work, message, is_received

    def wait(self, patience: float | None = None) -> Tensor:
        """The message, once it has left or arrived. Raises XTokenError naming a peer that is gone or silent."""
        seconds = self._link.patience if patience is None else patience
        attempt(lambda: self._work.wait(timedelta(seconds=seconds)), self._link.peer, seconds)
        if self._is_received:
            self._link.bytes_received += self._message.numel() * self._message.element_size()
        return self._message


def attempt(operation: Callable[[], Result], peer: str, patience: float) -> Result:
    """The result of an operation of gloo. Raises XTokenError that names the peer where it fails."""
    started = time.monotonic()
    try:
        return operation()
    except RuntimeError as error:
        if time.monotonic() - started >= 0.95 * patience:
            raise XTokenError(f"{peer} has not answered for {patience:g} s; {GOES_ON}") from error
        # What gloo says begins with a place in its source and goes on with advice.
        reason = SOURCE.sub("", str(error)).partition(". ")[0].partition("\n")[0]
        raise XTokenError(f"{peer} is gone ({reason}); {GOES_ON}") from error
