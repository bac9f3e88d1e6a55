"""The teacher's side of a remote teacher: takes the student's requests, and sends hidden states to its ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from nemo_xtoken.teachers.link import Link, Transfer
from nemo_xtoken.teachers.messages import REQUEST_NUMBERS, STOP, Header, pack, unpack_request
from nemo_xtoken.teachers.protocol import SampleRange
from nemo_xtoken.teachers.routes import Routes


class RequestLine:
    """The student's requests, on one of the teacher's ranks. There is always a receive under way, so that the student
    never waits to ask."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next = self._receive()

    def next(self, patience: float) -> SampleRange:
        """The next request, or STOP. Raises XTokenError where the student is gone, or silent so many seconds."""
        samples = unpack_request(self._next.wait(patience))
        if samples != STOP:
            self._next = self._receive()
        return samples

    def _receive(self) -> Transfer:
        return self._link.receive(torch.empty(REQUEST_NUMBERS, dtype=torch.int64))


class Sender:
    """Sends a teacher's hidden states from one rank of its last pipeline stage.

    rank   of this process in the job
    links  to the student's ranks, by their rank in the job
    """

    def __init__(self, routes: Routes, rank: int, links: Mapping[int, Link]) -> None:
        self._routes, self._rank, self._links = routes, rank, links
        self._on_their_way: deque[tuple[int, Transfer]] = deque()

    def send(self, header: Header, hidden: Tensor) -> None:
        """Begin to send the rows of a micro batch, [b*t/cp, h], each to the rank that wants it."""
        for piece in self._routes.to_receivers(header.number, self._rank):
            message = pack(header, hidden.index_select(0, piece.sent.to(hidden.device)))
            self._on_their_way.append((header.request, self._links[piece.receiver].send(message)))

    def settle(self, request: int) -> None:
        """Wait until all that answers the requests up to this one has arrived."""
        while self._on_their_way and self._on_their_way[0][0] <= request:
            self._on_their_way.popleft()[1].wait()

    def settle_all(self) -> None:
        """Wait until all that was sent has arrived."""
        while self._on_their_way:
            self._on_their_way.popleft()[1].wait()
