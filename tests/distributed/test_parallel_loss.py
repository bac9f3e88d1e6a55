"""The sharded loss against the pure math: same value and same gradient, however the vocabularies are cut."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken import losses
from nemo_xtoken.config import Direction, LossConfig, LossMode, Merge
from nemo_xtoken.errors import ConfigError, LogitsError
from nemo_xtoken.parallel import HeadOptions, cut_head, cut_options, distillation_loss, shard_pair, shard_projection
from nemo_xtoken.types import ChunkRows, LossTerms
from tests.distributed.ranks import run_ranks
from tests.problems import Problem, random_problem

KD_SCALE, CE_SCALE = 0.7, 1.9
LOSSES = {
    "p_kl": losses.projected_kl,
    "h_kl": losses.hybrid_kl,
    "gold": losses.gold,
    "uld": losses.uld,
    "strict_top_k": losses.strict_top_k,
}
Result = tuple[list[float], Tensor, Tensor]
"""Numerator, cross-entropy, chunk metrics in the order of names; gradients of hidden states and of the whole head."""


def reference(problem: Problem, config: LossConfig) -> Result:
    """By autograd through full logits."""
    hidden, head = (x.clone().requires_grad_() for x in (problem.student_hidden, problem.student_head))
    logits = hidden @ head.t()
    kd = LOSSES[config.mode](logits, problem.teacher_logits, problem.batch, problem.matrix, config)
    ce = losses.cross_entropy(logits, problem.batch, problem.matrix.student_vocab_size)
    numerator = KD_SCALE * kd.numerator + CE_SCALE * ce.numerator
    hidden_grad, head_grad = torch.autograd.grad(numerator, (hidden, head))
    metrics = [kd.metrics[name].total.item() for name in sorted(kd.metrics)]
    return [numerator.item(), ce.numerator.item(), *metrics], hidden_grad, head_grad


def shard(x: Tensor, rank: int, size: int) -> Tensor:
    """Uneven on purpose: the first shards are longer where the rows can't be divided."""
    return x.tensor_split(size)[rank].clone()


def sharded(problem: Problem, config: LossConfig, cut: bool) -> Result:
    """The same from this rank's shards; the head's gradient is put together again."""
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    hidden = problem.student_hidden.clone().requires_grad_()
    head = shard(problem.student_head, rank, size).requires_grad_()
    teacher_head: Tensor = shard(problem.teacher_head, rank, size)
    matrix: Any = problem.matrix
    if cut:
        matrix = shard_pair(problem.matrix, config, head, group)
        teacher_head = cut_head(teacher_head, matrix, group)
    terms = distillation_loss(
        hidden, head, problem.teacher_hidden, teacher_head, problem.batch, matrix, config, group,
        kd_scale=KD_SCALE, ce_scale=CE_SCALE,
    )  # fmt: skip
    terms.numerator.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, head.grad)
    names = sorted(set(terms.metrics) - {"ce", "chunk_tokens"})
    metrics = [terms.metrics[name].total.item() for name in ("ce", *names)]
    return [terms.numerator.item(), *metrics], hidden.grad, torch.cat(parts)


def assert_same(actual: Result, expected: Result, tolerance: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=tolerance)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * float(e.abs().max()))


MERGES: tuple[Merge, ...] = ("mean", "first", "last")
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
MODES: tuple[LossMode, ...] = ("h_kl", "gold", "uld", "strict_top_k")
OTHERS: tuple[tuple[Merge, Direction, float], ...] = (("mean", "forward", 1.0), ("first", "reverse", 2.0))
CONFIGS = [
    *(
        LossConfig(merge=merge, direction=direction, block_rows=rows, teacher_top_k=top_k, temperature=temperature)
        for merge, direction in itertools.product(MERGES, DIRECTIONS)
        for rows, top_k, temperature in [(7, None, 1.0), (512, 6, 2.0)]
    ),
    *(
        LossConfig(mode=mode, merge=merge, direction=direction, block_rows=7, temperature=temperature, strict_top_k=4)
        for mode in MODES
        for merge, direction, temperature in OTHERS
    ),
    LossConfig(mode="h_kl", sorted_cap=5, merge="last"),
    LossConfig(one_to_one_only=True),
]


@pytest.mark.parametrize(
    ("tp_size", "cut", "configs"),
    [(1, True, CONFIGS), (2, True, CONFIGS), (4, True, CONFIGS), (2, False, CONFIGS[::5]), (8, True, CONFIGS[::5])],
)
def test_value_and_gradient_equal_the_pure_math_in_float64(tp_size: int, cut: bool, configs: list[LossConfig]) -> None:
    problem = random_problem(11, student_padding=2, teacher_padding=3)
    results = run_ranks(tp_size, lambda: [sharded(problem, config, cut) for config in configs])
    for config, *of_ranks in zip(configs, *results, strict=True):
        for result in of_ranks:
            assert_same(result, reference(problem, config), 1e-10)


@pytest.mark.parametrize("tp_size", [2, 4])
def test_value_and_gradient_equal_the_pure_math_in_float32(tp_size: int) -> None:
    config = LossConfig(block_rows=5)
    problem = random_problem(12, dtype=torch.float32)
    exact = random_problem(12)
    for result in run_ranks(tp_size, sharded, problem, config, True):
        assert_same((result[0], result[1].double(), result[2].double()), reference(exact, config), 1e-5)


def test_a_rank_that_holds_only_padding_takes_part() -> None:
    problem = random_problem(13, student_vocab=5, student_padding=3, teacher_vocab=6, teacher_padding=2)
    for config, cut in itertools.product(
        (LossConfig(), LossConfig(mode="h_kl"), LossConfig(mode="uld")), (True, False)
    ):
        for result in run_ranks(4, sharded, problem, config, cut):
            assert_same(result, reference(problem, config), 1e-10)
            assert result[2][5:].abs().max() == 0


def test_a_batch_without_a_valid_chunk_has_the_gradient_of_cross_entropy_alone() -> None:
    problem = random_problem(14)
    chunks = ChunkRows(**{**vars(problem.batch.chunks), "mask": torch.zeros_like(problem.batch.chunks.mask)})
    empty = replace(problem, batch=replace(problem.batch, chunks=chunks))
    for config in (LossConfig(), LossConfig(teacher_top_k=4), LossConfig(mode="gold")):
        for result in run_ranks(2, sharded, empty, config, True):
            assert not any(result[0][2:])
            assert_same(result, reference(empty, config), 1e-10)


def test_without_a_teacher_it_is_cross_entropy() -> None:
    problem = random_problem(15, student_padding=1)

    def ranks() -> LossTerms:
        head = shard(problem.student_head, dist.get_rank(), dist.get_world_size())
        return distillation_loss(
            problem.student_hidden, head, None, None, problem.batch, None, LossConfig(block_rows=6), dist.group.WORLD,
            ce_scale=1.0, student_vocab_size=23,
        )  # fmt: skip

    expected = losses.cross_entropy(problem.student_logits, problem.batch, 23)
    for terms in run_ranks(2, ranks):
        assert terms.numerator.item() == pytest.approx(expected.numerator.item(), rel=1e-12)
        assert terms.denominator.item() == expected.denominator.item()
        assert set(terms.metrics) == {"ce"}


def test_a_denominator_counted_over_tp_halves_the_loss_at_tp_2() -> None:
    """The mistake of a released implementation: the chunks of tp replicas are the same chunks and count once."""
    problem = random_problem(16)

    def ranks() -> tuple[float, float]:
        hidden, size = problem.student_hidden, dist.get_world_size()
        heads = (shard(head, dist.get_rank(), size) for head in (problem.student_head, problem.teacher_head))
        student_head, teacher_head = heads
        terms = distillation_loss(
            hidden, student_head, problem.teacher_hidden, teacher_head, problem.batch, problem.matrix, LossConfig(),
            dist.group.WORLD,
        )  # fmt: skip
        counted_over_tp = terms.denominator.clone()
        dist.all_reduce(counted_over_tp)
        return (terms.numerator / terms.denominator).item(), (terms.numerator / counted_over_tp).item()

    (one,) = run_ranks(1, ranks)
    for right, wrong in run_ranks(2, ranks):
        assert right == pytest.approx(one[0], rel=1e-12)
        assert wrong == pytest.approx(one[0] / 2, rel=1e-12)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_the_gradient_of_learnable_w_equals_the_pure_maths(tp_size: int) -> None:
    problem = random_problem(21, student_padding=2)
    weights = torch.from_numpy(problem.matrix.weights).double()
    config = LossConfig(block_rows=7, teacher_top_k=9)

    def ranks() -> tuple[float, Tensor]:
        group = dist.group.WORLD
        head = shard(problem.student_head, dist.get_rank(), tp_size)
        cut = shard_projection(problem.matrix, head, group)
        own = weights[cut.student_rows.start : cut.student_rows.end].clone().requires_grad_()
        teacher_head = cut_head(shard(problem.teacher_head, dist.get_rank(), tp_size), cut, group)
        terms = distillation_loss(
            problem.student_hidden, head, problem.teacher_hidden, teacher_head, problem.batch, cut, config, group,
            ce_scale=CE_SCALE, weights=own,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(terms.numerator, own)
        return terms.metrics["kd"].total.item(), grad

    results = run_ranks(tp_size, ranks)
    whole = weights.clone().requires_grad_()
    inputs = (problem.student_logits, problem.teacher_logits, problem.batch, problem.matrix, config, whole)
    expected = losses.projected_kl(*inputs).numerator
    assert results[0][0] == pytest.approx(expected.item(), rel=1e-10)
    actual = torch.cat([grad for _, grad in results])
    torch.testing.assert_close(actual, torch.autograd.grad(expected, whole)[0], rtol=1e-10, atol=1e-12)


def test_the_block_size_does_not_change_the_result() -> None:
    problem = random_problem(17, length=60, teacher_length=70)
    results = [run_ranks(1, sharded, problem, LossConfig(block_rows=rows), True)[0] for rows in (1, 2, 3, 10, 64, 4096)]
    for result in results[1:]:
        assert_same(result, results[0], 1e-11)


def test_exact_matches_never_cross_a_rank_when_teacher_rows_follow_them() -> None:
    problem = random_problem(18, student_vocab=400, teacher_vocab=390)

    def ranks() -> tuple[int, int, int]:
        head = shard(problem.student_head, dist.get_rank(), dist.get_world_size())
        projection = shard_projection(problem.matrix, head, dist.group.WORLD)
        exact = torch.from_numpy(problem.matrix.exact_rows)
        local = exact[projection.student_rows.start : projection.student_rows.end]
        is_exact = local[projection.rows]
        sent_exact = (projection.columns[is_exact] >= len(projection.teacher_rows)).sum()
        return int(is_exact.sum()), int(sent_exact), sum(projection.send)

    for exact, sent_exact, sent in run_ranks(2, ranks):
        assert exact > 50
        assert sent_exact == 0
        assert sent > 0


def test_bfloat16_inputs_are_summed_in_float32() -> None:
    problem = random_problem(19)
    low = {
        name: getattr(problem, name).bfloat16()
        for name in ("student_hidden", "student_head", "teacher_hidden", "teacher_head")
    }

    def ranks() -> tuple[Tensor, torch.dtype]:
        hidden = low["student_hidden"].clone().requires_grad_()
        terms = distillation_loss(
            hidden, low["student_head"], low["teacher_hidden"], low["teacher_head"], problem.batch, problem.matrix,
            LossConfig(),
        )  # fmt: skip
        terms.numerator.backward()
        assert hidden.grad is not None
        return terms.numerator.detach(), hidden.grad.dtype

    ((numerator, grad_dtype),) = run_ranks(1, ranks)
    assert (numerator.dtype, grad_dtype) == (torch.float32, torch.bfloat16)
    exact = replace(problem, **{name: x.double() for name, x in low.items()})
    assert numerator.item() == pytest.approx(reference(exact, LossConfig())[0][2], rel=2e-2)


def test_what_is_not_available_or_does_not_fit_is_refused_in_words() -> None:
    problem = random_problem(20)
    inputs = (problem.student_hidden, problem.student_head, problem.teacher_hidden, problem.teacher_head, problem.batch)
    cut = shard_projection(problem.matrix, problem.student_head)
    with pytest.raises(ConfigError, match="W was cut for another loss mode than 'gold'"):
        distillation_loss(*inputs, cut, LossConfig(mode="gold"))
    with pytest.raises(ConfigError, match="'same_tokenizer' needs one tokenizer on both sides"):
        distillation_loss(*inputs, problem.matrix, LossConfig(mode="same_tokenizer"))
    with pytest.raises(ConfigError, match="belong together"):
        distillation_loss(*inputs, None, LossConfig())
    with pytest.raises(ConfigError, match="cut the head with cut_head"):
        distillation_loss(
            *inputs[:3], problem.teacher_head[:3], problem.batch,
            shard_projection(problem.matrix, problem.student_head), LossConfig(),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="W was built for 23 student ids but the student's head has 22 rows"):
        distillation_loss(problem.student_hidden, problem.student_head[:22], *inputs[2:], problem.matrix, LossConfig())


def test_a_wrong_shape_and_a_group_of_the_wrong_size_are_errors_before_anything_is_computed() -> None:
    problem = random_problem(20)
    hidden, head = problem.student_hidden, problem.student_head
    teacher = (problem.teacher_hidden, problem.teacher_head)

    def loss(rows: Tensor, weight: Tensor, of: tuple[Tensor, Tensor] = teacher, matrix: Any = problem.matrix) -> None:
        distillation_loss(rows, weight, *of, problem.batch, matrix, LossConfig())

    with pytest.raises(LogitsError, match=r"student_hidden \[40, h\] .* got \[2, 20, 6\]"):
        loss(hidden.view(2, 20, 6), head)
    with pytest.raises(LogitsError, match=r"student_hidden \[40, h\] .* got \[39, 6\]"):
        loss(hidden[:-1], head)
    with pytest.raises(LogitsError, match=r"student_head \[rows of the vocabulary, 6\] .* got \[23, 5\]"):
        loss(hidden, head[:, :5])
    with pytest.raises(LogitsError, match=r"teacher_hidden \[48, h\] .* got \[47, 5\]"):
        loss(hidden, head, of=(teacher[0][:-1], teacher[1]))
    with pytest.raises(
        ConfigError, match="W was cut for 23 rows of the student's head on this rank, student_head has 22"
    ):
        loss(hidden, head[:22], matrix=shard_projection(problem.matrix, head))

    def ranks() -> None:
        cut = shard_pair(problem.matrix, LossConfig(), shard(head, dist.get_rank(), 2), dist.group.WORLD)
        loss(hidden, head, of=(teacher[0], teacher[1][: len(cut.teacher_rows)]), matrix=cut)

    with pytest.raises(ConfigError, match="W was cut for 2 tensor-parallel ranks, tp_group has 1"):
        run_ranks(2, ranks)


@pytest.mark.parametrize(("tp_size", "cut"), [(1, True), (1, False), (2, True), (2, False), (4, True), (8, True)])
def test_bias_scale_and_soft_cap_belong_to_the_head(tp_size: int, cut: bool) -> None:
    problem = random_problem(22, student_padding=1, teacher_padding=1)
    generator = torch.Generator().manual_seed(0)
    bias, teacher_bias = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (24, 20))
    config = LossConfig(block_rows=7, teacher_top_k=9)

    def capped(hidden: Tensor, head: Tensor, head_bias: Tensor) -> Tensor:
        return 3.0 * torch.tanh(0.5 * (hidden @ head.t() + head_bias) / 3.0)

    def ranks() -> tuple[float, Tensor, Tensor, Tensor]:
        group, rank = dist.group.WORLD, dist.get_rank()
        hidden = problem.student_hidden.clone().requires_grad_()
        head, own_bias = (shard(x, rank, tp_size).requires_grad_() for x in (problem.student_head, bias))
        teacher_head: Tensor = shard(problem.teacher_head, rank, tp_size)
        teacher_options = HeadOptions(bias=shard(teacher_bias, rank, tp_size), scale=0.5, soft_cap=3.0)
        matrix: Any = problem.matrix
        if cut:
            matrix = shard_pair(problem.matrix, config, head, group)
            teacher_head = cut_head(teacher_head, matrix, group)
            teacher_options = cut_options(teacher_options, matrix, group)
        terms = distillation_loss(
            hidden, head, problem.teacher_hidden, teacher_head, problem.batch, matrix, config, group,
            ce_scale=CE_SCALE, student_options=HeadOptions(bias=own_bias, scale=0.5, soft_cap=3.0),
            teacher_options=teacher_options,
        )  # fmt: skip
        hidden_grad, head_grad, bias_grad = torch.autograd.grad(terms.numerator, (hidden, head, own_bias))
        return terms.numerator.item(), hidden_grad, head_grad, bias_grad

    hidden, head, whole_bias = (
        x.clone().requires_grad_() for x in (problem.student_hidden, problem.student_head, bias)
    )
    logits = capped(hidden, head, whole_bias)
    teacher_logits = capped(problem.teacher_hidden, problem.teacher_head, teacher_bias)
    kd = losses.projected_kl(logits, teacher_logits, problem.batch, problem.matrix, config).numerator
    expected = kd + CE_SCALE * losses.cross_entropy(logits, problem.batch, 23).numerator
    gradients = torch.autograd.grad(expected, (hidden, head, whole_bias))
    results = run_ranks(tp_size, ranks)
    for value, hidden_grad, _, _ in results:
        assert value == pytest.approx(expected.item(), rel=1e-10)
        torch.testing.assert_close(hidden_grad, gradients[0], rtol=1e-10, atol=1e-10)
    for part in (2, 3):
        together = torch.cat([result[part] for result in results])
        torch.testing.assert_close(together, gradients[part - 1], rtol=1e-10, atol=1e-10)
