"""A teacher on other ranks of the job: the student asks for the hidden states of samples, and they are sent to it.

A request is for a step's samples, which both sides read from the data themselves: no token travels. The student asks
for the next step when it begins one, so a teacher works one step ahead and never more: requests are the credits of the
stream. Every message has the number of its request and micro batch and a checksum of the teacher's tokens, so hidden
states of other data, or in another order, are an error and no wrong gradient.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from nemo_xtoken import parallel
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.teachers.link import Link, Transfer
from nemo_xtoken.teachers.messages import STOP, Header, checksum, pack_request, room_for, unpack
from nemo_xtoken.teachers.parts import of_all_tp_ranks
from nemo_xtoken.teachers.protocol import HiddenFormat, SampleRange, TeacherHead
from nemo_xtoken.teachers.routes import Piece, Routes
from nemo_xtoken.types import DistillBatch


class Requests:
    """The student's requests to one teacher, on one of its ranks."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sent: deque[Transfer] = deque()

    def ask(self, samples: SampleRange) -> None:
        """Send a request, without waiting for the teacher to take it."""
        self._sent.append(self._link.send(pack_request(samples)))

    def settle(self) -> None:
        """Wait until the teacher has taken all requests."""
        while self._sent:
            self._sent.popleft().wait()


class Receiver:
    """Receives a teacher's hidden states on one rank of the student's last pipeline stage.

    rank      of this process in the job
    links     to the teacher's ranks, by their rank in the job
    tp_group  the student's ranks that share what each receives a part of
    signal    that a teacher's rank was sent, 0 for none
    """

    def __init__(
        self, routes: Routes, rank: int, links: Mapping[int, Link], form: HiddenFormat, tp_group: dist.ProcessGroup
    ) -> None:
        self._routes, self._rank, self._links, self._form, self._tp_group = routes, rank, links, form, tp_group
        self._sizes = routes.part_sizes()
        self._expected: deque[tuple[int, int, list[tuple[Piece, Transfer]]]] = deque()
        self.signal = 0

    @property
    def bytes_received(self) -> int:
        """Of all messages that have arrived on this rank."""
        return sum(link.bytes_received for link in self._links.values())

    def expect(self, request: int, num_micro_batches: int) -> None:
        """Be ready for this rank's share of the answer to a request, of so many micro batches over all ranks."""
        at, dp_size = self._routes.student.place_of(self._rank), self._routes.student.parallel.data_parallel_size
        for number in range(at.dp_rank, num_micro_batches, dp_size):
            pieces = self._routes.from_senders(number, self._rank)
            transfers = [(piece, self._links[piece.sender].receive(self._room(piece))) for piece in pieces]
            self._expected.append((request, number, transfers))

    def next(self, tokens: int) -> Tensor:
        """The hidden states [b*t/cp, h] of the next micro batch, on the device, the same on every tp rank.

        tokens: the `checksum` of its tokens. One all-gather over tp. Raises XTokenError where the teacher is gone, or
        has sent what was not asked for.
        """
        request, number, transfers = self._expected.popleft()
        width, dtype, device = self._form
        part = torch.empty(self._sizes[self._tp_group.rank()], width, dtype=dtype, device=device)
        for piece, transfer in transfers:
            header, rows = unpack(transfer.wait(), width, dtype)
            _check(header, Header(request, number, tokens, header.signal), self._links[piece.sender].peer)
            self.signal = header.signal or self.signal
            part[piece.placed.to(device)] = rows.to(device)
        return of_all_tp_ranks(part, self._sizes, self._tp_group)

    def drain(self) -> None:
        """Take in and drop what is still expected, so that the teacher can end."""
        while self._expected:
            for _, transfer in self._expected.popleft()[2]:
                transfer.wait()

    def _room(self, piece: Piece) -> Tensor:
        return room_for(len(piece.sent), self._form.width, self._form.dtype, pinned=self._form.device.type == "cuda")


def _check(got: Header, expected: Header, peer: str) -> None:
    if got != expected:
        raise XTokenError(
            f"{peer} sent micro batch {got.number} of request {got.request} with tokens {got.checksum:08x}, expected "
            f"{expected.number} of {expected.request} with {expected.checksum:08x}; every node must read the same data"
        )


class RemoteSource:
    """A teacher on other ranks, as the student's ranks see it.

    head      [V_T/tp, h_T], this rank's shard of the teacher's head over the student's tp group, with the options of
              these rows; as receiver, None on the pipeline stages without the student's head
    requests  None on all ranks but one
    wait_until_ready  returns when the teacher can be asked: loading it may take longer than its answers ever will
    """

    def __init__(
        self,
        micro_batch_size: int,
        tp_group: dist.ProcessGroup,
        head: TeacherHead | None,
        receiver: Receiver | None,
        requests: Requests | None,
        wait_until_ready: Callable[[], None],
    ) -> None:
        self._micro_batch_size, self._tp_group, self._head = micro_batch_size, tp_group, head
        self.receiver, self._requests, self._wait_until_ready = receiver, requests, wait_until_ready
        self._announced: Iterator[SampleRange] = iter(())
        self._asked = 0
        self._checksums: list[int] = []
        self._arrived: list[Tensor] = []
        self._next = 0

    def head(self, pair: parallel.ShardedPair) -> TeacherHead:
        """The rows `pair.teacher_rows`, sent round the student's tp group; the rest of the shard is dropped."""
        assert self._head is not None
        head, self._head = self._head, None
        return head.cut(pair, self._tp_group)

    def begin(self, announced: Iterator[SampleRange]) -> None:
        """Ask for the first of what `prepare` will announce."""
        self._wait_until_ready()
        self._announced = announced
        self._ask_for_next()

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Turn to what was asked for, and ask for what comes after it."""
        self._checksums = [checksum(batch.teacher_tokens) for batch in micro_batches]
        self._arrived, self._next = [], 0
        self._ask_for_next()

    def hidden(self, batch: DistillBatch) -> Tensor:
        """[b*t/cp, h_T], when they have arrived."""
        number = self._next % len(self._checksums)
        self._next += 1
        if number == len(self._arrived):
            self._arrived.append(self._receive(self._checksums[number]))
        return self._arrived[number]

    def close(self) -> None:
        """Let the teacher end. An error of it has been raised where its hidden states were missed."""
        with contextlib.suppress(XTokenError):
            if self._requests is not None:
                self._requests.ask(STOP)
            if self.receiver is not None:
                self.receiver.drain()
            if self._requests is not None:
                self._requests.settle()

    def _ask_for_next(self) -> None:
        samples = next(self._announced, None)
        if samples is None:
            return
        if self._requests is not None:
            self._requests.ask(samples)
        if self.receiver is not None:
            self.receiver.expect(self._asked, samples.count // self._micro_batch_size)
        self._asked += 1

    def _receive(self, tokens: int) -> Tensor:
        assert self.receiver is not None
        heard = self.receiver.signal
        hidden = self.receiver.next(tokens)
        if self.receiver.signal and not heard:
            # The student's ranks agree on the step to stop at, as if one of them had been sent it.
            signal.raise_signal(self.receiver.signal)
        return hidden


def connect(
    routes: Routes, rank: int, store: Store, name: str, name_of: Callable[[int], str], patience: float
) -> dict[int, Link]:
    """The links of a rank of a last stage to all ranks that it exchanges hidden states with, by their rank in the job.

    name     of the teacher, the same on both sides
    name_of  a rank of the job, as errors name it
    Raises XTokenError where one of them does not come within `patience` seconds.
    """
    is_student = rank in routes.student.last_stage
    links: dict[int, Link] = {}
    # Both sides go in ascending order, so ranks can't wait for one another in a circle.
    for other in routes.peers_of(rank):
        key = f"{name}/{rank}-{other}" if is_student else f"{name}/{other}-{rank}"
        links[other] = Link(store, key, is_student, name_of(other), patience)
    return links
