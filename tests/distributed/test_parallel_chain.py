"""The chain of pieces with sharded vocabularies, with sequences cut over ranks, in blocks: as in one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.parallel import context_positions, distillation_loss, shard_pair
from nemo_xtoken.types import ChunkRows
from tests.distributed.ranks import run_ranks
from tests.distributed.test_parallel_loss import assert_same, reference, sharded
from tests.problems import Problem, chain_problem

CHAIN = LossConfig(merge="first", chain=True)
CONFIGS = [
    replace(CHAIN, block_rows=3),
    replace(CHAIN, direction="reverse", temperature=2.0, block_rows=7),
    replace(CHAIN, temperature=2.0),
]


@pytest.mark.parametrize(("tp_size", "cut"), [(1, True), (2, True), (2, False), (4, True)])
def test_value_and_gradient_equal_the_pure_math_in_float64(tp_size: int, cut: bool) -> None:
    problem = chain_problem(11, student_padding=2, teacher_padding=3)
    results = run_ranks(tp_size, lambda: [sharded(problem, config, cut) for config in CONFIGS])
    for config, *of_ranks in zip(CONFIGS, *results, strict=True):
        expected = reference(problem, config)
        assert expected[0][2] > 1.1 * reference(problem, replace(config, chain=False))[0][2]
        for result in of_ranks:
            assert_same(result, expected, 1e-10)


def test_value_and_gradient_equal_the_pure_math_in_float32() -> None:
    problem, exact = chain_problem(12, dtype=torch.float32), chain_problem(12)
    for result in run_ranks(2, sharded, problem, CHAIN, True):
        assert_same((result[0], result[1].double(), result[2].double()), reference(exact, CHAIN), 1e-5)


def test_ranks_without_a_token_and_batches_without_a_chunk_take_part() -> None:
    small = chain_problem(13, student_vocab=10, student_padding=3)
    for result in run_ranks(4, sharded, small, CHAIN, True):
        assert_same(result, reference(small, CHAIN), 1e-10)
    chunks = ChunkRows(**{**vars(small.batch.chunks), "mask": torch.zeros_like(small.batch.chunks.mask)})
    empty = replace(small, batch=replace(small.batch, chunks=chunks))
    for result in run_ranks(2, sharded, empty, CHAIN, True):
        assert not any(result[0][2:])
        assert_same(result, reference(empty, CHAIN), 1e-10)


@pytest.mark.parametrize("cp_size", [2, 4])
def test_over_context_parallel_ranks_every_step_counts_once(cp_size: int) -> None:
    problem = chain_problem(14, length=32, teacher_length=48)

    def ranks() -> tuple[float, Tensor]:
        group = dist.group.WORLD
        hidden = _own_rows(problem.student_hidden, problem.batch.student_labels.shape, cp_size).requires_grad_()
        teacher = _own_rows(problem.teacher_hidden, problem.batch.teacher_labels.shape, cp_size)
        terms = distillation_loss(
            hidden, problem.student_head, teacher, problem.teacher_head, problem.batch, problem.matrix, CHAIN,
            None, group, kd_scale=0.7, ce_scale=1.9,
        )  # fmt: skip
        terms.numerator.backward()
        total = terms.numerator.detach().clone()
        dist.all_reduce(total)
        assert hidden.grad is not None
        return total.item(), hidden.grad

    expected = reference(problem, CHAIN)
    whole = _own_rows(expected[1], problem.batch.student_labels.shape, 1).view(2, 32, -1)
    for rank, (total, grad) in enumerate(run_ranks(cp_size, ranks)):
        assert total == pytest.approx(expected[0][0], rel=1e-10)
        own = whole[:, context_positions(32, rank, cp_size)].flatten(0, 1)
        torch.testing.assert_close(grad, own, rtol=1e-10, atol=1e-10)


def _own_rows(x: Tensor, shape: tuple[int, ...], cp_size: int) -> Tensor:
    """This rank's rows of [b*s, h], each sequence's in the order of `context_positions`."""
    rank = dist.get_rank() if cp_size > 1 else 0
    return x.view(*shape, -1)[:, context_positions(shape[1], rank, cp_size)].flatten(0, 1).clone()


def test_w_of_another_loss_is_refused() -> None:
    problem: Problem = chain_problem(15)
    inputs = (problem.student_hidden, problem.student_head, problem.teacher_hidden, problem.teacher_head, problem.batch)
    cut = shard_pair(problem.matrix, replace(CHAIN, chain=False), problem.student_head)
    teacher_head = problem.teacher_head[cut.teacher_rows]
    with pytest.raises(ConfigError, match="W was cut for another loss than one with chain True"):
        distillation_loss(*inputs[:3], teacher_head, inputs[4], cut, CHAIN)
    with pytest.raises(ConfigError, match="leaves no weights to learn"):
        distillation_loss(*inputs, problem.matrix, CHAIN, weights=torch.ones(40, 1))
