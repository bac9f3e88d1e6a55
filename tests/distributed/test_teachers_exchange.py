"""Hidden states between two layouts of the same ranks: every rank gets its rows, and only its part of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.parallel import context_positions
from nemo_xtoken.teachers.exchange import Exchange
from nemo_xtoken.teachers.parts import of_all_tp_ranks
from nemo_xtoken.teachers.protocol import HiddenFormat
from nemo_xtoken.teachers.routes import Grid, Place, Routes
from tests.distributed.ranks import run_ranks

SEQUENCES, LENGTH, WIDTH, NUMBERS = 3, 8, 5, 8


def layout(tp: int = 1, pp: int = 1, cp: int = 1, dp: int = 1) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        data_parallel_size=dp,
    )


LAYOUTS = [
    layout(tp=4), layout(pp=4), layout(cp=4), layout(dp=4),
    layout(tp=2, pp=2), layout(tp=2, cp=2), layout(tp=2, dp=2), layout(pp=2, dp=2),
]  # fmt: skip


@cache
def whole(number: int) -> Tensor:
    """[sequences, length, width] of a micro batch, no two numbers the same."""
    size = SEQUENCES * LENGTH * WIDTH
    return (number * size + torch.arange(size, dtype=torch.float64)).view(SEQUENCES, LENGTH, WIDTH)


def rows_of(number: int, cp_rank: int, cp_size: int) -> Tensor:
    return whole(number)[:, context_positions(LENGTH, cp_rank, cp_size)].flatten(0, 1)


def owned(number: int, place: Place, dp_size: int, *, in_blocks: bool) -> bool:
    return place.dp_rank == (number * dp_size // NUMBERS if in_blocks else number % dp_size)


def received(student: Grid, teacher: Grid, groups: dict[Any, Any], *, in_blocks: bool) -> dict[int, Tensor]:
    """Rows of each micro batch that this rank has in the end. in_blocks: the teacher's dp ranks take the wrong ones."""
    rank = dist.get_rank()
    routes = Routes(student, teacher, SEQUENCES, LENGTH)
    exchange = Exchange(routes, rank, HiddenFormat(WIDTH, torch.float64, torch.device("cpu")))
    held: dict[int, Tensor] = {}
    if rank in teacher.last_stage:
        at, sizes = teacher.place_of(rank), teacher.parallel
        mine = [n for n in range(NUMBERS) if owned(n, at, sizes.data_parallel_size, in_blocks=in_blocks)]
        numbers = range(at.dp_rank, NUMBERS, sizes.data_parallel_size)
        held = {n: rows_of(m, at.cp_rank, sizes.context_parallel_size) for n, m in zip(numbers, mine, strict=True)}
    parts: dict[int, Tensor] = {}
    for first in range(0, NUMBERS, exchange.round):
        parts |= exchange.move(range(first, first + exchange.round), held)
    if rank not in student.last_stage:
        assert not parts
        return {}
    tp_size, tp_rank = student.parallel.tensor_model_parallel_size, student.place_of(rank).tp_rank
    sizes = routes.part_sizes()
    assert {len(part) for part in parts.values()} == {sizes[tp_rank]}
    group = groups[tuple(range(rank - tp_rank, rank - tp_rank + tp_size))]
    return {number: of_all_tp_ranks(part, sizes, group) for number, part in parts.items()}


def check_all() -> None:
    groups = {ranks: dist.new_group(list(ranks)) for ranks in [(0, 1), (2, 3), (0, 1, 2, 3), (0,), (1,), (2,), (3,)]}
    for student in map(Grid, LAYOUTS):
        for teacher in map(Grid, LAYOUTS):
            found = received(student, teacher, groups, in_blocks=False)
            if dist.get_rank() not in student.last_stage:
                continue
            at, sizes = student.place_of(dist.get_rank()), student.parallel
            assert list(found) == list(range(at.dp_rank, NUMBERS, sizes.data_parallel_size))
            for number, rows in found.items():
                assert torch.equal(rows, rows_of(number, at.cp_rank, sizes.context_parallel_size))
    wrong = received(Grid(layout(dp=4)), Grid(layout(tp=2, dp=2)), groups, in_blocks=True)
    assert not all(torch.equal(rows, rows_of(number, 0, 1)) for number, rows in wrong.items())


@pytest.mark.timeout(120)
def test_every_layout_gives_every_other_its_rows() -> None:
    run_ranks(4, check_all)


def test_nothing_travels_between_equal_layouts() -> None:
    def stays(student: ParallelConfig, teacher: ParallelConfig) -> bool:
        form = HiddenFormat(WIDTH, torch.float64, torch.device("cpu"))
        return Exchange(Routes(Grid(student), Grid(teacher), SEQUENCES, LENGTH), 0, form).stays_in_place

    assert all(stays(one, one) for one in LAYOUTS)
    assert not stays(layout(tp=4), layout(tp=2, dp=2))
    assert not stays(layout(pp=4), layout(dp=4))
