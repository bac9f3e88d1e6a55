"""Which rows of a micro batch's hidden states go from which rank of a teacher to which rank of the student.

Pure arithmetic of two layouts. Micro batch i of a step belongs to data-parallel rank i % dp_size on either side. A
student rank wants the positions that its context-parallel rank has; of their rows, which its tensor-parallel ranks all
need, it receives one part and gets the others from these ranks: a hidden state travels between the two models once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.parallel import context_positions


class Place(NamedTuple):
    """A rank of a model's last pipeline stage."""

    tp_rank: int
    cp_rank: int
    dp_rank: int


@dataclass(frozen=True)
class Grid:
    """The ranks of one model in a job, in Megatron's order: tensor, context, data, pipeline parallel.

    first_rank  their first one, of the job's
    """

    parallel: ParallelConfig
    first_rank: int = 0

    @property
    def ranks(self) -> range:
        """The model's ranks, of the job's."""
        return range(self.first_rank, self.first_rank + self.parallel.world_size)

    @property
    def last_stage(self) -> range:
        """Those that have the final hidden states."""
        stage = self.parallel.world_size // self.parallel.pipeline_model_parallel_size
        return self.ranks[-stage:]

    def rank_of(self, place: Place) -> int:
        """The job's rank at a place of the last stage."""
        tp_size, cp_size = self.parallel.tensor_model_parallel_size, self.parallel.context_parallel_size
        return self.last_stage[place.tp_rank + tp_size * (place.cp_rank + cp_size * place.dp_rank)]

    def place_of(self, rank: int) -> Place:
        """The place of one of the job's ranks on the last stage."""
        tp_size, cp_size = self.parallel.tensor_model_parallel_size, self.parallel.context_parallel_size
        number = self.last_stage.index(rank)
        return Place(number % tp_size, number // tp_size % cp_size, number // (tp_size * cp_size))


class Piece(NamedTuple):
    """What one rank of the teacher sends of a micro batch to one rank of the student.

    sender, receiver  ranks of the job
    sent    [n] int64, rows of the sender's [b*t/cp, h_T]
    placed  [n] int64, the rows that they become in the receiver's part, [n_part, h_T]
    """

    sender: int
    receiver: int
    sent: Tensor
    placed: Tensor


@dataclass(frozen=True)
class Routes:
    """The ways between a teacher's and the student's last stages for micro batches of [sequences, length] tokens."""

    student: Grid
    teacher: Grid
    sequences: int
    length: int

    def to_receivers(self, number: int, sender: int) -> list[Piece]:
        """The pieces that a rank of the teacher sends of micro batch `number`."""
        at, own = self.teacher.place_of(sender), self.student.parallel
        if number % self.teacher.parallel.data_parallel_size != at.dp_rank:
            return []
        receivers = [
            Place(tp_rank, cp_rank, number % own.data_parallel_size)
            for cp_rank in range(own.context_parallel_size)
            for tp_rank in range(own.tensor_model_parallel_size)
            if tp_rank % self.teacher.parallel.tensor_model_parallel_size == at.tp_rank
        ]
        return self._pieces([(at, receiver) for receiver in receivers])

    def from_senders(self, number: int, receiver: int) -> list[Piece]:
        """The pieces that a rank of the student receives of micro batch `number`."""
        at, other = self.student.place_of(receiver), self.teacher.parallel
        if number % self.student.parallel.data_parallel_size != at.dp_rank:
            return []
        tp_rank = at.tp_rank % other.tensor_model_parallel_size
        senders = [
            Place(tp_rank, cp_rank, number % other.data_parallel_size) for cp_rank in range(other.context_parallel_size)
        ]
        return self._pieces([(sender, at) for sender in senders])

    def part_sizes(self) -> list[int]:
        """Rows of a micro batch that each tensor-parallel rank of the student receives."""
        tp_size, cp_size = self.student.parallel.tensor_model_parallel_size, self.student.parallel.context_parallel_size
        return [len(part) for part in _rows(self.sequences, self.length, 0, cp_size).tensor_split(tp_size)]

    def peers_of(self, rank: int) -> list[int]:
        """The ranks on the other side that this rank of a last stage exchanges pieces with, ascending."""
        both = self.student.parallel.data_parallel_size * self.teacher.parallel.data_parallel_size
        if rank in self.student.last_stage:
            return sorted({piece.sender for number in range(both) for piece in self.from_senders(number, rank)})
        return sorted({piece.receiver for number in range(both) for piece in self.to_receivers(number, rank)})

    def _pieces(self, pairs: list[tuple[Place, Place]]) -> list[Piece]:
        pieces: list[Piece] = []
        for sender, receiver in pairs:
            sent, placed = _common_rows(self, receiver.tp_rank, receiver.cp_rank, sender.cp_rank)
            if len(sent):
                pieces.append(Piece(self.teacher.rank_of(sender), self.student.rank_of(receiver), sent, placed))
        return pieces


@cache
def _common_rows(routes: Routes, tp_rank: int, cp_rank: int, teacher_cp_rank: int) -> tuple[Tensor, Tensor]:
    """Rows that a place of the student receives from a context-parallel rank of the teacher: there, and here."""
    student, teacher = routes.student.parallel, routes.teacher.parallel
    wanted = _rows(routes.sequences, routes.length, cp_rank, student.context_parallel_size)
    wanted = wanted.tensor_split(student.tensor_model_parallel_size)[tp_rank]
    held = _rows(routes.sequences, routes.length, teacher_cp_rank, teacher.context_parallel_size)
    place = torch.full((routes.sequences * routes.length,), -1)
    place[held] = torch.arange(len(held))
    found = place[wanted]
    placed = (found >= 0).nonzero().squeeze(-1)
    return found[placed], placed


def _rows(sequences: int, length: int, cp_rank: int, cp_size: int) -> Tensor:
    """The rows of [sequences*length] that a context-parallel rank holds, in its order."""
    positions = context_positions(length, cp_rank, cp_size)
    return (torch.arange(sequences)[:, None] * length + positions).flatten()
