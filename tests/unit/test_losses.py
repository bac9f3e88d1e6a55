"""The pure losses against numbers computed by hand, naive loops, and what the method says of their gradients."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_xtoken import losses
from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.divergence import divergence, divergence_and_entropy
from nemo_xtoken.losses.learnable import row_parameters, row_weights
from nemo_xtoken.losses.sparse_projection import SparseProjection
from nemo_xtoken.losses.vocabulary import WholeVocabulary, log_softmax
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch
from tests.problems import Problem, random_problem

MERGES = ("mean", "first", "last")
MERGES_AND_DIRECTIONS = list(itertools.product(MERGES, ("forward", "reverse")))


def one_chunk(
    student_rows: int, teacher_rows: int, student_labels: list[int], teacher_labels: list[int]
) -> DistillBatch:
    student, teacher = torch.tensor([student_labels]), torch.tensor([teacher_labels])
    chunk = ChunkRows(
        student_start=torch.tensor([0]),
        student_end=torch.tensor([student_rows]),
        teacher_start=torch.tensor([0]),
        teacher_end=torch.tensor([teacher_rows]),
        mask=torch.tensor([True]),
    )
    return DistillBatch(
        student_tokens=student,
        student_position_ids=student,
        student_labels=student,
        student_loss_mask=torch.ones(1, student_rows),
        teacher_tokens=teacher,
        teacher_position_ids=teacher,
        teacher_labels=teacher,
        chunks=chunk,
    )


def logits_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# Token 0 is common; token 1 is three teacher tokens, its weights exact in float32.
NUMERAL = ProjectionMatrix(
    np.array([[0, -1, -1], [2, 1, 3]], np.int32), np.array([[1, 0, 0], [0.75, 0.1875, 0.0625]], np.float32), 4
)


def test_projected_kl_of_one_chunk_is_the_number_computed_by_hand() -> None:
    student, teacher = logits_of([0.4, 0.6]), logits_of([0.3, 0.1, 0.5, 0.1])
    batch = one_chunk(1, 1, [1], [2])
    q = [0.4, 0.6 * 0.1875, 0.6 * 0.75, 0.6 * 0.0625]
    expected = sum(p * math.log(p / s) for p, s in zip([0.3, 0.1, 0.5, 0.1], q, strict=True))
    terms = losses.projected_kl(student, teacher, batch, NUMERAL, LossConfig())
    assert terms.numerator.item() == pytest.approx(expected, rel=1e-12)
    assert terms.denominator.item() == 1


def test_projected_kl_on_the_two_largest_teacher_columns_renormalises_both_sides() -> None:
    student, teacher = logits_of([0.4, 0.6]), logits_of([0.3, 0.1, 0.5, 0.1])
    q = [0.4 / 0.85, 0.45 / 0.85]
    expected = sum(p * math.log(p / s) for p, s in zip([0.375, 0.625], q, strict=True))
    terms = losses.projected_kl(student, teacher, one_chunk(1, 1, [1], [2]), NUMERAL, LossConfig(teacher_top_k=2))
    assert terms.numerator.item() == pytest.approx(expected, rel=1e-12)


def test_gold_of_one_chunk_is_the_number_computed_by_hand() -> None:
    student, teacher = logits_of([0.4, 0.6]), logits_of([0.3, 0.1, 0.5, 0.1])
    expected = 0.3 * math.log(0.3 / 0.4) + abs(0.6 - 0.5)
    terms = losses.gold(student, teacher, one_chunk(1, 1, [1], [2]), NUMERAL, LossConfig(mode="gold"))
    assert terms.numerator.item() == pytest.approx(expected, rel=1e-12)


def test_hybrid_kl_joins_the_heaviest_piece_to_the_common_set() -> None:
    student, teacher = logits_of([0.4, 0.6]), logits_of([0.3, 0.1, 0.5, 0.1])
    expected = 0.3 * math.log(0.3 / 0.4) + 0.5 * math.log(0.5 / 0.6)
    terms = losses.hybrid_kl(student, teacher, one_chunk(1, 1, [1], [2]), NUMERAL, LossConfig(mode="h_kl"))
    assert terms.numerator.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_is_the_number_computed_by_hand() -> None:
    terms = losses.cross_entropy(logits_of([0.4, 0.6], [0.9, 0.1]), one_chunk(2, 1, [1, 0], [0]))
    assert terms.numerator.item() == pytest.approx(-math.log(0.6) - math.log(0.9), rel=1e-12)
    assert terms.denominator.item() == 2


# --- naive loops ------------------------------------------------------------------------------------------------------


def naive_chunk_distribution(
    logits: Tensor, labels: Tensor, start: int, end: int, how: str, side: str, tau: float
) -> Tensor:
    """The definition, one number at a time: probabilities (student) or their geometric mean (teacher)."""
    probs = [torch.softmax(logits[row] / tau, -1) for row in range(start, end)]
    if how == "mean" and side == "student":
        return sum(probs, torch.zeros_like(probs[0])) / len(probs)
    if how == "mean":
        return torch.exp(sum((p.log() for p in probs), torch.zeros_like(probs[0])) / len(probs))
    at = 0 if how == "first" else len(probs) - 1
    factor = math.prod(
        1.0 if labels[start + i] < 0 else probs[i][labels[start + i]].item() for i in range(len(probs)) if i != at
    )
    return probs[at] * factor


def naive_chunks(problem: Problem, config: LossConfig) -> list[tuple[Tensor, Tensor]]:
    chunks, batch = problem.batch.chunks, problem.batch
    pairs: list[tuple[Tensor, Tensor]] = []
    for k in range(len(chunks.mask)):
        if not chunks.mask[k]:
            continue
        sides = (
            (problem.student_logits, batch.student_labels, chunks.student_start, chunks.student_end, "student"),
            (problem.teacher_logits, batch.teacher_labels, chunks.teacher_start, chunks.teacher_end, "teacher"),
        )
        student, teacher = (
            naive_chunk_distribution(
                logits, labels.flatten(), int(start[k]), int(end[k]), config.merge, side, config.temperature
            )
            for logits, labels, start, end, side in sides
        )
        pairs.append((student, teacher))
    return pairs


def naive_kl(teacher: list[float], student: list[float], direction: str) -> float:
    left, right = (teacher, student) if direction == "forward" else (student, teacher)
    return sum(p * math.log(p / q) for p, q in zip(left, right, strict=True))


def naive_projected_kl(problem: Problem, config: LossConfig) -> float:
    dense = torch.from_numpy(problem.matrix.to_dense()).double()
    columns = [t for t in range(dense.shape[1]) if dense[:, t].sum() > 0]
    if config.teacher_top_k is not None:
        chunks = problem.batch.chunks.valid()
        spans = zip(chunks.teacher_start.tolist(), chunks.teacher_end.tolist(), strict=True)
        rows = [row for start, end in spans for row in range(start, end)]
        best = {t: max(problem.teacher_logits[row, t].item() for row in rows) for t in columns}
        columns = sorted(columns, key=lambda t: -best[t])[: config.teacher_top_k]
    total = 0.0
    for student, teacher in naive_chunks(problem, config):
        q = [sum((student[s] * dense[s, t]).item() for s in range(len(dense))) for t in columns]
        p = [teacher[t].item() for t in columns]
        total += naive_kl([x / sum(p) for x in p], [x / sum(q) for x in q], config.direction)
    return total * config.temperature**2


def naive_partition(problem: Problem, config: LossConfig, pairs: list[tuple[int, int]]) -> float:
    total = 0.0
    for student, teacher in naive_chunks(problem, config):
        common_student, common_teacher = [s for s, _ in pairs], [t for _, t in pairs]
        total += naive_kl(
            [teacher[t].item() for t in common_teacher], [student[s].item() for s in common_student], config.direction
        )
        rest_student = sorted((student[s].item() for s in range(len(student)) if s not in common_student), reverse=True)
        rest_teacher = sorted((teacher[t].item() for t in range(len(teacher)) if t not in common_teacher), reverse=True)
        kept = list(zip(rest_student, rest_teacher, strict=False))[: config.sorted_cap]
        total += sum(abs(a - b) for a, b in kept)
    return total * config.temperature**2


def naive_pairs(matrix: ProjectionMatrix, threshold: float) -> list[tuple[int, int]]:
    taken: dict[int, int] = {}
    best = [(int(row[0]), float(weight[0])) for row, weight in zip(matrix.indices, matrix.weights, strict=True)]
    for s in sorted(range(len(best)), key=lambda s: (-best[s][1], s)):
        teacher_id, weight = best[s]
        if teacher_id >= 0 and weight >= threshold and teacher_id not in taken:
            taken[teacher_id] = s
    return [(s, t) for t, s in taken.items()]


@pytest.mark.parametrize(("merge", "direction"), MERGES_AND_DIRECTIONS)
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_projected_kl_equals_the_naive_loop(merge: Any, direction: Any, top_k: int | None, temperature: float) -> None:
    problem = random_problem(1)
    config = LossConfig(merge=merge, direction=direction, teacher_top_k=top_k, temperature=temperature)
    terms = losses.projected_kl(problem.student_logits, problem.teacher_logits, problem.batch, problem.matrix, config)
    assert terms.numerator.item() == pytest.approx(naive_projected_kl(problem, config), rel=1e-10)
    assert terms.denominator.item() == problem.batch.chunks.mask.sum()


@pytest.mark.parametrize(("merge", "direction"), MERGES_AND_DIRECTIONS)
@pytest.mark.parametrize("mode", ["gold", "h_kl", "uld"])
def test_partition_losses_equal_the_naive_loop(merge: Any, direction: Any, mode: Any) -> None:
    problem = random_problem(2)
    config = LossConfig(mode=mode, merge=merge, direction=direction, temperature=1.5, sorted_cap=5)
    loss, threshold = {
        "gold": (losses.gold, 1.0), "h_kl": (losses.hybrid_kl, config.hybrid_threshold), "uld": (losses.uld, math.inf)
    }[mode]  # fmt: skip
    terms = loss(problem.student_logits, problem.teacher_logits, problem.batch, problem.matrix, config)
    expected = naive_partition(problem, config, naive_pairs(problem.matrix, threshold))
    assert terms.numerator.item() == pytest.approx(expected, rel=1e-10)


def test_the_three_merges_agree_on_one_to_one_chunks_only() -> None:
    problem = random_problem(3)
    chunks = problem.batch.chunks
    single = (chunks.student_end - chunks.student_start == 1) & (chunks.teacher_end - chunks.teacher_start == 1)

    def values(mask: Tensor) -> list[float]:
        kept = ChunkRows(**{**vars(chunks), "mask": mask})
        batch = DistillBatch(**{**vars(problem.batch), "chunks": kept})
        return [
            losses.projected_kl(
                problem.student_logits, problem.teacher_logits, batch, problem.matrix, LossConfig(merge=merge)
            ).numerator.item()
            for merge in MERGES
        ]

    mean, first, last = values(single)
    assert first == pytest.approx(mean, rel=1e-12)
    assert last == pytest.approx(mean, rel=1e-12)
    assert len({round(value, 6) for value in values(~single)}) == 3


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("merge", "direction"), MERGES_AND_DIRECTIONS)
@pytest.mark.parametrize("mode", ["p_kl", "gold", "h_kl"])
def test_gradients_are_those_of_finite_differences(merge: Any, direction: Any, mode: Any) -> None:
    problem = random_problem(4, student_vocab=6, teacher_vocab=5, sequences=1, length=6, teacher_length=6)
    loss = {"p_kl": losses.projected_kl, "gold": losses.gold, "h_kl": losses.hybrid_kl}[mode]
    config = LossConfig(mode=mode, merge=merge, direction=direction, temperature=1.3)
    logits = problem.student_logits.clone().requires_grad_()

    def value(student_logits: Tensor) -> Tensor:
        return loss(student_logits, problem.teacher_logits, problem.batch, problem.matrix, config).numerator

    assert torch.autograd.gradcheck(value, logits)


def test_projected_kl_gradient_has_the_closed_form_of_the_method() -> None:
    matrix = NUMERAL
    student, teacher = logits_of([0.4, 0.6]).requires_grad_(), logits_of([0.3, 0.1, 0.5, 0.1])
    losses.projected_kl(student, teacher, one_chunk(1, 1, [1], [2]), matrix, LossConfig()).numerator.backward()
    dense = torch.from_numpy(matrix.to_dense()).double()
    p, t = student.detach().softmax(-1)[0], teacher.softmax(-1)[0]
    expected = p * (1 - dense @ (t / (p @ dense)))
    assert student.grad is not None
    torch.testing.assert_close(student.grad[0], expected, rtol=1e-6, atol=1e-8)


def test_common_set_kl_pushes_every_uncommon_token_down() -> None:
    """The suppression proposition: dL/dz_j = p_S[j]·sum over C of p_T, never negative, for every j outside C."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_log = torch.randn(5, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    student_ids, teacher_ids = torch.tensor([0, 3, 4, 8]), torch.tensor([1, 2, 5, 6])
    student_log = log_softmax(logits, WholeVocabulary())
    divergence(teacher_log[:, teacher_ids], student_log[:, student_ids], "forward").sum().backward()
    uncommon = [j for j in range(11) if j not in student_ids.tolist()]
    mass = teacher_log[:, teacher_ids].exp().sum(-1, keepdim=True)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, uncommon], logits.detach().softmax(-1)[:, uncommon] * mass)
    assert (logits.grad[:, uncommon] > 0).all()


def test_projected_kl_does_not_push_a_multi_digit_numeral_down_where_the_teacher_writes_its_digits() -> None:
    student, teacher = logits_of([0.9, 0.1]).requires_grad_(), logits_of([0.1, 0.05, 0.8, 0.05])
    batch = one_chunk(1, 1, [1], [2])
    losses.projected_kl(student, teacher, batch, NUMERAL, LossConfig()).numerator.backward()
    assert student.grad is not None
    assert student.grad[0, 1] < 0
    pushed = student.detach().clone().requires_grad_()
    student_log = log_softmax(pushed, WholeVocabulary())
    divergence(teacher.log_softmax(-1)[:, [0]], student_log[:, [0]], "forward").sum().backward()
    assert pushed.grad is not None
    assert pushed.grad[0, 1] > 0


def test_student_tokens_that_w_does_not_connect_to_the_columns_get_no_gradient() -> None:
    matrix = ProjectionMatrix(np.array([[0], [1], [2]], np.int32), np.ones((3, 1), np.float32), 3)
    student = torch.tensor([[0.3, -0.2, 0.7]], dtype=torch.float64, requires_grad=True)
    teacher = logits_of([0.6, 0.3, 0.1])
    config = LossConfig(teacher_top_k=2)
    losses.projected_kl(student, teacher, one_chunk(1, 1, [1], [1]), matrix, config).numerator.backward()
    assert student.grad is not None
    assert abs(student.grad[0, 2].item()) < 1e-15
    assert student.grad[0, :2].abs().min() > 0.01


# --- W and edges ------------------------------------------------------------------------------------------------------


def test_projection_keeps_mass_exactly_when_no_row_of_w_is_empty() -> None:
    problem = random_problem(5)
    p = problem.student_logits.softmax(-1)
    q = SparseProjection.from_matrix(problem.matrix).project(p)
    filled = torch.from_numpy(problem.matrix.indices[:, 0] >= 0)
    assert not filled.all()
    torch.testing.assert_close(q.sum(-1), p[:, filled].sum(-1), rtol=1e-6, atol=0)


def test_a_matching_student_has_no_loss_and_a_mismatching_one_has() -> None:
    identity = ProjectionMatrix(np.arange(4, dtype=np.int32)[:, None], np.ones((4, 1), np.float32), 4)
    teacher, batch = logits_of([0.3, 0.1, 0.5, 0.1]), one_chunk(1, 1, [1], [2])
    for loss in (losses.projected_kl, losses.gold, losses.hybrid_kl, losses.uld):
        assert loss(teacher.clone(), teacher, batch, identity, LossConfig()).numerator.item() == pytest.approx(
            0, abs=1e-12
        )
        assert loss(logits_of([0.1, 0.1, 0.1, 0.7]), teacher, batch, identity, LossConfig()).numerator.item() > 0.01


def test_padded_ids_change_neither_value_nor_get_gradient() -> None:
    plain, padded = random_problem(6), random_problem(6)
    student = torch.cat([plain.student_logits, torch.full((40, 3), 9.0)], 1).requires_grad_()
    teacher = torch.cat([plain.teacher_logits, torch.full((48, 2), 9.0)], 1)
    for loss in (losses.projected_kl, losses.gold, losses.hybrid_kl):
        expected = loss(plain.student_logits, plain.teacher_logits, plain.batch, plain.matrix, LossConfig()).numerator
        actual = loss(student, teacher, padded.batch, padded.matrix, LossConfig()).numerator
        assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
        (grad,) = torch.autograd.grad(actual, student)
        assert grad[:, 23:].abs().max() == 0


def test_a_batch_without_a_valid_chunk_has_zero_loss_and_zero_gradient() -> None:
    problem = random_problem(7)
    chunks = ChunkRows(**{**vars(problem.batch.chunks), "mask": torch.zeros_like(problem.batch.chunks.mask)})
    batch = DistillBatch(**{**vars(problem.batch), "chunks": chunks})
    for loss in (losses.projected_kl, losses.gold):
        for top_k in (None, 4):
            logits = problem.student_logits.clone().requires_grad_()
            terms = loss(logits, problem.teacher_logits, batch, problem.matrix, LossConfig(teacher_top_k=top_k))
            terms.numerator.backward()
            assert (terms.numerator.item(), terms.denominator.item()) == (0, 0)
            assert logits.grad is not None
            assert logits.grad.abs().max() == 0


def test_underflowing_probabilities_stay_finite() -> None:
    student = torch.tensor([[0.0, -300.0]], requires_grad=True)
    teacher = torch.tensor([[-300.0, 0.0, 0.0, 0.0]])
    terms = losses.projected_kl(student, teacher, one_chunk(1, 1, [1], [2]), NUMERAL, LossConfig())
    terms.numerator.backward()
    assert student.grad is not None
    assert torch.isfinite(terms.numerator)
    assert torch.isfinite(student.grad).all()


def test_logits_narrower_than_w_are_refused() -> None:
    problem = random_problem(8)
    with pytest.raises(ConfigError, match="23 student ids but the student's logits have 22 columns"):
        losses.projected_kl(
            problem.student_logits[:, :22], problem.teacher_logits, problem.batch, problem.matrix, LossConfig()
        )


@pytest.mark.parametrize(("merge", "direction"), [("mean", "forward"), ("first", "reverse")])
def test_strict_top_k_equals_the_naive_loop(merge: Any, direction: Any) -> None:
    problem = random_problem(9, length=40, teacher_length=44)
    config = LossConfig(mode="strict_top_k", merge=merge, direction=direction, strict_top_k=2, temperature=1.5)
    chunks = problem.batch.chunks
    single = (chunks.student_end - chunks.student_start == 1) & (chunks.teacher_end - chunks.teacher_start == 1)
    kept_chunks = chunks.masked(chunks.mask & single)
    kept = replace(problem, batch=replace(problem.batch, chunks=kept_chunks))
    expected, empty = 0.0, 0
    for student, teacher in naive_chunks(kept, config):
        top = sorted(range(len(teacher)), key=lambda t: -teacher[t].item())[: config.strict_top_k]
        pairs = [(s, t) for s, t in naive_pairs(problem.matrix, 1.0) if t in top]
        p, q = [teacher[t].item() for _, t in pairs], [student[s].item() for s, _ in pairs]
        expected += naive_kl([x / sum(p) for x in p], [x / sum(q) for x in q], direction)
        empty += not pairs
    logits = problem.student_logits.clone().requires_grad_()
    terms = losses.strict_top_k(logits, problem.teacher_logits, problem.batch, problem.matrix, config)
    assert empty > 0
    assert 0 < kept_chunks.mask.sum() < chunks.mask.sum()
    assert terms.numerator.item() == pytest.approx(expected * config.temperature**2, rel=1e-10)
    assert terms.denominator.item() == kept_chunks.mask.sum()
    (grad,) = torch.autograd.grad(terms.numerator, logits)
    assert torch.isfinite(grad).all()


def test_one_to_one_only_leaves_longer_chunks_out_of_sum_and_count() -> None:
    problem = random_problem(10)
    chunks = problem.batch.chunks
    single = (chunks.student_end - chunks.student_start == 1) & (chunks.teacher_end - chunks.teacher_start == 1)
    kept = replace(problem.batch, chunks=chunks.masked(chunks.mask & single))
    inputs = (problem.student_logits, problem.teacher_logits)
    filtered = losses.projected_kl(*inputs, problem.batch, problem.matrix, LossConfig(one_to_one_only=True))
    expected = losses.projected_kl(*inputs, kept, problem.matrix, LossConfig())
    everything = losses.projected_kl(*inputs, problem.batch, problem.matrix, LossConfig())
    assert filtered.numerator.item() == expected.numerator.item()
    assert filtered.denominator == expected.denominator < everything.denominator


# --- learnable W ------------------------------------------------------------------------------------------------------


def test_learnable_rows_start_as_w_and_stay_distributions() -> None:
    matrix = random_problem(11).matrix
    weights, filled = torch.from_numpy(matrix.weights), torch.from_numpy(matrix.indices >= 0)
    parameters = row_parameters(weights, filled)
    torch.testing.assert_close(row_weights(parameters, filled), weights)
    moved = row_weights(parameters + torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0)), filled)
    assert (moved >= 0).all()
    assert moved[~filled].abs().max() == 0
    torch.testing.assert_close(moved.sum(-1), filled.any(-1).float())
    exact = torch.from_numpy(matrix.exact_rows)
    torch.testing.assert_close(moved[exact], weights[exact])
    assert (moved - weights).abs().max() > 0.1


def test_the_gradient_of_w_is_that_of_finite_differences_and_lowers_the_loss() -> None:
    problem = random_problem(12, student_vocab=8, teacher_vocab=7, sequences=1, length=8, teacher_length=8)
    filled = torch.from_numpy(problem.matrix.indices >= 0)
    parameters = row_parameters(torch.from_numpy(problem.matrix.weights).double(), filled).requires_grad_()

    def value(parameters: Tensor) -> Tensor:
        return losses.projected_kl(
            problem.student_logits, problem.teacher_logits, problem.batch, problem.matrix, LossConfig(),
            row_weights(parameters, filled),
        ).numerator  # fmt: skip

    assert torch.autograd.gradcheck(value, parameters)
    before = value(parameters)
    (grad,) = torch.autograd.grad(before, parameters)
    assert value(parameters - 0.05 * grad) < before


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_of_one_chunk_are_the_numbers_computed_by_hand() -> None:
    teacher, batch = logits_of([0.3, 0.1, 0.5, 0.1]), one_chunk(1, 1, [1], [2])
    entropy = -sum(p * math.log(p) for p in [0.3, 0.1, 0.5, 0.1])
    for probability, agrees in ((0.6, 1), (0.2, 0)):  # token 1 stands for teacher token 2 first of all
        student = logits_of([1 - probability, probability])
        metrics = losses.projected_kl(student, teacher, batch, NUMERAL, LossConfig()).metrics
        assert metrics["teacher_entropy"].total.item() == pytest.approx(entropy, rel=1e-12)
        assert metrics["top_1_agreement"].total.item() == agrees
        hybrid = losses.hybrid_kl(student, teacher, batch, NUMERAL, LossConfig()).metrics
        assert hybrid["top_1_agreement"].total.item() == agrees
        # Without a partner in GOLD's common set the numeral never agrees.
        assert losses.gold(student, teacher, batch, NUMERAL, LossConfig()).metrics["top_1_agreement"].total == 0


def test_mass_on_uncommon_tokens_of_two_chunks_by_hand() -> None:
    """Token 0 is the only exact pair; H-KL has the numeral and its first digit in common as well."""
    student, teacher = logits_of([0.4, 0.6]), logits_of([0.3, 0.1, 0.5, 0.1])
    batch, config = one_chunk(1, 1, [1], [2]), LossConfig()
    both = ("student_uncommon_mass", "teacher_uncommon_mass")
    for loss, expected in (
        (losses.gold, (0.6, 0.7)),
        (losses.hybrid_kl, (0.0, 0.2)),
        (losses.strict_top_k, (0.6, 0.7)),
    ):
        metrics = loss(student, teacher, batch, NUMERAL, config).metrics
        assert [metrics[name].total.item() for name in both] == pytest.approx(expected, rel=1e-12)
        assert [metrics[name].count.item() for name in both] == [1, 1]
    for loss in (losses.uld, losses.projected_kl):
        assert not set(both) & set(loss(student, teacher, batch, NUMERAL, config).metrics)
    # Over two rows the student's mean is a distribution, the teacher's mean of logs sums to less.
    student, teacher = logits_of([0.4, 0.6], [0.8, 0.2]), logits_of([0.3, 0.1, 0.5, 0.1], [0.7, 0.1, 0.1, 0.1])
    metrics = losses.gold(student, teacher, one_chunk(2, 2, [1, 0], [2, 0]), NUMERAL, config).metrics
    expected = (0.4, 0.1 + math.sqrt(0.05) + 0.1)
    assert [metrics[name].total.item() for name in both] == pytest.approx(expected, rel=1e-12)


def test_kl_of_models_that_are_near_keeps_its_digits() -> None:
    """In float32 against float64; cross-entropy less entropy, the wrong variant, keeps half as many."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(64, 5000, generator=generator)
    teacher = logits.log_softmax(-1)
    student = (logits + 0.02 * torch.randn(64, 5000, generator=generator)).log_softmax(-1)
    exact = float((teacher.double().exp() * (teacher.double() - student.double())).sum())
    value, entropy = divergence_and_entropy(teacher, student, "forward")
    assert float(value) == pytest.approx(exact, rel=2e-5)
    difference = -(teacher.exp() * student).sum() - entropy
    assert abs(float(difference) / exact - 1) > 2e-4


def test_sums_over_millions_of_columns_keep_the_digits_of_their_type() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (log_softmax(3 * torch.randn(32, 100_000, generator=generator), WholeVocabulary()) for _ in "ab")
    actual = divergence_and_entropy(teacher, student, "forward")
    expected = divergence_and_entropy(teacher.double(), student.double(), "forward")
    for a, e in zip(actual, expected, strict=True):
        assert a.item() == pytest.approx(e.item(), rel=1e-6)
    of_few_running_sums = -torch.dot(teacher.exp().flatten(), teacher.flatten())
    assert of_few_running_sums.item() != pytest.approx(expected[1].item(), rel=1e-5)
