"""The loss when every sequence is cut over context-parallel ranks, alone and together with tensor parallelism."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken import losses
from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.parallel import context_positions, distillation_loss
from tests.distributed.ranks import run_ranks
from tests.problems import Problem, random_problem

LOSSES = {"p_kl": losses.projected_kl, "h_kl": losses.hybrid_kl, "gold": losses.gold}
CONFIGS = [
    *(LossConfig(merge=merge, block_rows=9) for merge in ("mean", "first", "last")),
    LossConfig(teacher_top_k=6, direction="reverse"),
    LossConfig(mode="gold", merge="first", sorted_cap=5),
    LossConfig(mode="h_kl"),
]


def groups(cp_size: int) -> tuple[Any, Any]:
    """tp and cp groups of this rank, tp innermost."""
    tp_size = dist.get_world_size() // cp_size
    tp_groups = [dist.new_group([c * tp_size + t for t in range(tp_size)]) for c in range(cp_size)]
    cp_groups = [dist.new_group([c * tp_size + t for c in range(cp_size)]) for t in range(tp_size)]
    return tp_groups[dist.get_rank() // tp_size], cp_groups[dist.get_rank() % tp_size]


def cut_rows(hidden: Tensor, sequences: int, cp_group: Any) -> Tensor:
    whole = hidden.view(sequences, -1, hidden.shape[-1])
    return whole[:, context_positions(whole.shape[1], cp_group.rank(), cp_group.size())].flatten(0, 1).clone()


def put_back(parts: list[Tensor], sequences: int, length: int) -> Tensor:
    whole = torch.zeros(sequences, length, parts[0].shape[-1], dtype=parts[0].dtype)
    for cp_rank, part in enumerate(parts):
        whole[:, context_positions(length, cp_rank, len(parts))] = part.view(sequences, -1, part.shape[-1])
    return whole.flatten(0, 1)


def on_ranks(problem: Problem, cp_size: int) -> list[tuple[float, float, Tensor, Tensor]]:
    """Value, number of chunks and both gradients of every config, put together over all ranks."""
    tp_group, cp_group = groups(cp_size)
    sequences, length = problem.batch.student_labels.shape
    head = problem.student_head.tensor_split(tp_group.size())[tp_group.rank()].clone().requires_grad_()
    teacher_head = problem.teacher_head.tensor_split(tp_group.size())[tp_group.rank()].clone()
    results: list[tuple[float, float, Tensor, Tensor]] = []
    for config in CONFIGS:
        hidden = cut_rows(problem.student_hidden, sequences, cp_group).requires_grad_()
        teacher_hidden = cut_rows(problem.teacher_hidden, sequences, cp_group)
        terms = distillation_loss(
            hidden, head, teacher_hidden, teacher_head, problem.batch, problem.matrix, config, tp_group, cp_group,
            kd_scale=0.7, ce_scale=1.9,
        )  # fmt: skip
        hidden_grad, head_grad = torch.autograd.grad(terms.numerator, (hidden, head))
        sums = torch.stack([terms.numerator.detach(), terms.denominator])
        dist.all_reduce(sums, group=cp_group)
        dist.all_reduce(head_grad, group=cp_group)
        parts: list[Any] = [None] * cp_size
        dist.all_gather_object(parts, hidden_grad, group=cp_group)
        head_parts: list[Any] = [None] * tp_group.size()
        dist.all_gather_object(head_parts, head_grad, group=tp_group)
        value, chunks = sums.tolist()
        results.append((value, chunks, put_back(parts, sequences, length), torch.cat(head_parts)))
    return results


@pytest.mark.parametrize(("tp_size", "cp_size"), [(1, 2), (1, 4), (2, 2), (2, 4)])
def test_value_and_gradient_do_not_depend_on_how_sequences_are_cut(tp_size: int, cp_size: int) -> None:
    problem = random_problem(31, length=32, teacher_length=40, student_padding=1, teacher_padding=2)
    chunks = problem.batch.chunks.valid()
    position = chunks.student_start % 32
    crossing = (position // (32 // (2 * cp_size))) != ((chunks.student_end - 1) % 32 // (32 // (2 * cp_size)))
    assert crossing.any(), "no chunk of this problem lies on two ranks"
    expected: list[tuple[float, float, Tensor, Tensor]] = []
    for config in CONFIGS:
        hidden, head = (x.clone().requires_grad_() for x in (problem.student_hidden, problem.student_head))
        logits = hidden @ head.t()
        kd = LOSSES[config.mode](logits, problem.teacher_logits, problem.batch, problem.matrix, config)
        value = 0.7 * kd.numerator + 1.9 * losses.cross_entropy(logits, problem.batch, 23).numerator
        hidden_grad, head_grad = torch.autograd.grad(value, (hidden, head))
        expected.append((value.item(), kd.denominator.item(), hidden_grad, head_grad))
    for of_rank in run_ranks(tp_size * cp_size, on_ranks, problem, cp_size):
        for actual, wanted in zip(of_rank, expected, strict=True):
            assert actual[:2] == pytest.approx(wanted[:2], rel=1e-10)
            for a, e in zip(actual[2:], wanted[2:], strict=True):
                torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10 * float(e.abs().max()))


def test_a_chunk_that_is_left_where_it_begins_without_its_other_rows_would_give_another_value() -> None:
    """The mistake of comparing only what a rank has: a chunk of two rows on two ranks is then one of one row."""
    problem = random_problem(31, length=32, teacher_length=40)
    chunks = problem.batch.chunks
    part = 32 // 4
    inside = (chunks.student_start // part + 1) * part
    cut = problem.batch.chunks.__class__(**{**vars(chunks), "student_end": torch.minimum(chunks.student_end, inside)})
    wrong = problem.batch.__class__(**{**vars(problem.batch), "chunks": cut})
    inputs = (problem.student_logits, problem.teacher_logits)
    right_value = losses.projected_kl(*inputs, problem.batch, problem.matrix, LossConfig()).numerator.item()
    wrong_value = losses.projected_kl(*inputs, wrong, problem.matrix, LossConfig()).numerator.item()
    assert abs(wrong_value - right_value) > 1e-3


def test_the_positions_of_all_ranks_are_the_sequence_and_the_halves_balance_the_causal_mask() -> None:
    for length, cp_size in itertools.product((16, 64), (1, 2, 4)):
        positions = [context_positions(length, rank, cp_size) for rank in range(cp_size)]
        assert torch.cat(positions).sort().values.tolist() == list(range(length))
        assert len({int(p.sum()) for p in positions}) == 1
    assert context_positions(8, 0, 2).tolist() == [0, 1, 6, 7]


def test_a_sequence_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="sequence length 20 must be divisible by 2 x context_parallel_size = 8"):
        context_positions(20, 0, 4)
