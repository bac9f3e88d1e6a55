"""Every row of a teacher's hidden states reaches the student rank that wants it, once, whatever the two layouts."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.parallel import context_positions
from nemo_xtoken.teachers.routes import Grid, Routes

SEQUENCES, LENGTH = 2, 24


def layout(tp_size: int = 1, cp_size: int = 1, dp_size: int = 1, pp_size: int = 1) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp_size,
        context_parallel_size=cp_size,
        data_parallel_size=dp_size,
        pipeline_model_parallel_size=pp_size,
    )


LAYOUTS = [layout(), layout(2), layout(1, 2), layout(1, 1, 2), layout(3, 2, 2, 2), layout(2, 3, 1), layout(1, 1, 3, 2)]


def held_by(parallel: ParallelConfig, cp_rank: int) -> torch.Tensor:
    """The rows of [sequences*length] that a context-parallel rank has, in its order, by hand."""
    positions = context_positions(LENGTH, cp_rank, parallel.context_parallel_size).tolist()
    return torch.tensor([sequence * LENGTH + position for sequence in range(SEQUENCES) for position in positions])


@pytest.mark.parametrize(("student", "teacher"), list(product(LAYOUTS, LAYOUTS)))
def test_each_rank_receives_its_own_rows_once(student: ParallelConfig, teacher: ParallelConfig) -> None:
    routes = Routes(Grid(student), Grid(teacher, student.world_size), SEQUENCES, LENGTH)
    both = student.data_parallel_size * teacher.data_parallel_size
    for number in range(both):
        pieces = [piece for rank in routes.student.last_stage for piece in routes.from_senders(number, rank)]
        sent = [piece for rank in routes.teacher.last_stage for piece in routes.to_receivers(number, rank)]
        key = [(p.sender, p.receiver, p.sent.tolist(), p.placed.tolist()) for p in pieces]
        assert sorted(key) == sorted((p.sender, p.receiver, p.sent.tolist(), p.placed.tolist()) for p in sent)
        assert sum(len(piece.sent) for piece in pieces) == SEQUENCES * LENGTH
        received: dict[int, torch.Tensor] = {}
        for piece in pieces:
            size = routes.part_sizes()[routes.student.place_of(piece.receiver).tp_rank]
            held = held_by(teacher, routes.teacher.place_of(piece.sender).cp_rank)
            received.setdefault(piece.receiver, torch.full((size,), -1))[piece.placed] = held[piece.sent]
        for cp_rank in range(student.context_parallel_size):
            parts = [received[rank] for rank in sorted(received) if routes.student.place_of(rank).cp_rank == cp_rank]
            assert torch.equal(torch.cat(parts), held_by(student, cp_rank))


def test_only_ranks_of_last_stages_exchange_rows_and_each_has_few_peers() -> None:
    student, teacher = layout(2, 1, 8, 2), layout(2, 1, 4, 2)
    routes = Routes(Grid(student), Grid(teacher, student.world_size), SEQUENCES, LENGTH)
    assert list(routes.student.last_stage) == list(range(16, 32))
    assert list(routes.teacher.last_stage) == list(range(40, 48))
    assert routes.peers_of(16) == [40]
    assert routes.peers_of(40) == [16, 24]
    pairs = {(rank, peer) for rank in routes.student.last_stage for peer in routes.peers_of(rank)}
    assert pairs == {(peer, rank) for rank in routes.teacher.last_stage for peer in routes.peers_of(rank)}


def test_places_are_in_megatrons_order() -> None:
    grid = Grid(layout(2, 3, 2, 2), 5)
    assert [grid.rank_of(grid.place_of(rank)) for rank in grid.last_stage] == list(grid.last_stage)
    assert grid.place_of(grid.last_stage[1]) == (1, 0, 0)
    assert grid.place_of(grid.last_stage[2]) == (0, 1, 0)
    assert grid.place_of(grid.last_stage[6]) == (0, 0, 1)
