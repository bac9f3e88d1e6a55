"""Moves hidden states between two layouts of the same ranks: from where a teacher has them to where they are compared.

The ways are those of `routes`: each tensor-parallel rank of the student takes one part of the rows, which waits there,
and the others' parts come over tp when the rows are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.teachers.protocol import HiddenFormat
from nemo_xtoken.teachers.routes import Piece, Routes


class Exchange:
    """All ranks of both layouts take part, also those that have and want nothing.

    rank  of this process, the same in both layouts
    """

    def __init__(self, routes: Routes, rank: int, form: HiddenFormat) -> None:
        self._routes, self._rank, self._form = routes, rank, form
        self._is_receiver = rank in routes.student.last_stage
        self._is_sender = rank in routes.teacher.last_stage
        self.stays_in_place = _stays_in_place(routes)

    @property
    def round(self) -> int:
        """Micro batches to move at a time: as many as keep every data-parallel rank of both layouts at work."""
        sizes = (grid.parallel.data_parallel_size for grid in (self._routes.student, self._routes.teacher))
        return math.lcm(*sizes)

    def move(self, numbers: Sequence[int], held: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """This rank's part [n_part, h] of each micro batch of these numbers that it wants.

        held: rows [b*t/cp, h] of the numbers that this rank of the teacher's last stage has, on the device.
        One all-to-all over all ranks, or none where every row stays on its rank.
        """
        outgoing = [(piece, held[number]) for number in numbers for piece in self._leaving(number)]
        incoming = [(number, piece) for number in numbers for piece in self._arriving(number)]
        outgoing.sort(key=lambda entry: entry[0].receiver)
        incoming.sort(key=lambda entry: entry[1].sender)
        width, dtype, device = self._form
        rows = [hidden.index_select(0, piece.sent.to(device)) for piece, hidden in outgoing]
        arrived = self._across(rows, [piece for piece, _ in outgoing], [piece for _, piece in incoming])
        parts: dict[int, Tensor] = {}
        for (number, piece), moved in zip(incoming, arrived, strict=True):
            part = parts.setdefault(number, torch.empty(self._part_size, width, dtype=dtype, device=device))
            part[piece.placed.to(device)] = moved
        return {number: parts[number] for number in sorted(parts)}

    def _across(self, rows: list[Tensor], leaving: list[Piece], arriving: list[Piece]) -> list[Tensor]:
        """The rows of the arriving pieces; both lists are in the order of the ranks on the other side."""
        if self.stays_in_place:
            return rows
        width, dtype, device = self._form
        sizes = [len(piece.placed) for piece in arriving]
        sent = torch.cat(rows) if rows else torch.empty(0, width, dtype=dtype, device=device)
        received = torch.empty(sum(sizes), width, dtype=dtype, device=device)
        to, of = [0] * dist.get_world_size(), [0] * dist.get_world_size()
        for piece in leaving:
            to[piece.receiver] += len(piece.sent)
        for piece in arriving:
            of[piece.sender] += len(piece.placed)
        # As bytes: gloo does not know every dtype.
        dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), of, to)
        return list(received.split(sizes))

    @property
    def _part_size(self) -> int:
        return self._routes.part_sizes()[self._routes.student.place_of(self._rank).tp_rank]

    def _leaving(self, number: int) -> list[Piece]:
        return self._routes.to_receivers(number, self._rank) if self._is_sender else []

    def _arriving(self, number: int) -> list[Piece]:
        return self._routes.from_senders(number, self._rank) if self._is_receiver else []


def _stays_in_place(routes: Routes) -> bool:
    """Whether no row has to leave its rank: the same on every rank."""
    numbers = range(routes.student.parallel.data_parallel_size * routes.teacher.parallel.data_parallel_size)
    return all(
        piece.sender == piece.receiver
        for number in numbers
        for receiver in routes.student.last_stage
        for piece in routes.from_senders(number, receiver)
    )
