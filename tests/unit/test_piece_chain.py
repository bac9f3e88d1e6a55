"""The chain of pieces against numbers by hand, the chain rule itself, and a loop over every token in float64."""

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
from nemo_xtoken.config import LossConfig, ModelConfig, TeacherConfig
from nemo_xtoken.errors import ConfigError, ProjectionError
from nemo_xtoken.losses.piece_tree import Here, mirrored, piece_tree
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch
from tests.problems import Problem, chain_problem, piece_table

CHAIN = LossConfig(merge="first", chain=True)
# Digits of the teacher are 0 to 3; the student has them, 20, 201, 202 and a token that is nothing to the teacher.
PIECES = [[0], [1], [2], [3], [2, 0], [2, 0, 1], [2, 0, 2], []]
TOKEN = {tuple(pieces): token for token, pieces in enumerate(PIECES)}


def matrix_of(pieces: list[list[int]], teacher_pieces: list[list[int]]) -> ProjectionMatrix:
    nothing = np.full((len(pieces), 1), -1, np.int32), np.zeros((len(pieces), 1), np.float32)
    tables = piece_table(pieces), piece_table(teacher_pieces)
    matrix = ProjectionMatrix(*nothing, len(teacher_pieces), pieces=tables[0], teacher_pieces=tables[1])
    return matrix.first_pieces()


NUMERALS = matrix_of(PIECES, [[0], [1], [2], [3], []])
# The other way round: the student has digits, the teacher numerals as well.
JOINED = matrix_of([[0], [1], [2], [3], []], PIECES)


def batch_of(token: int, following: int = 4) -> DistillBatch:
    """One chunk, the token in its pieces, and what the teacher's text goes on with."""
    pieces = PIECES[token]
    student, teacher = torch.tensor([[token]]), torch.tensor([[*pieces, following]])
    chunk = ChunkRows(
        student_start=torch.tensor([0]),
        student_end=torch.tensor([1]),
        teacher_start=torch.tensor([0]),
        teacher_end=torch.tensor([len(pieces)]),
        mask=torch.tensor([True]),
    )
    return DistillBatch(
        student_tokens=student, student_position_ids=student, student_labels=student,
        student_loss_mask=torch.ones(1, 1), teacher_tokens=teacher, teacher_position_ids=teacher,
        teacher_labels=teacher, chunks=chunk,
    )  # fmt: skip


def mirrored_batch(token: int) -> DistillBatch:
    """One chunk, the teacher's token, and the student's digits."""
    batch = batch_of(token)
    sides = {"student": "teacher", "teacher": "student"}
    swapped = {
        f"{a}_{name}": getattr(batch, f"{b}_{name}")
        for a, b in sides.items()
        for name in ("tokens", "labels", "position_ids")
    }
    mask = torch.ones(batch.teacher_labels.shape)
    return replace(batch, **swapped, student_loss_mask=mask, chunks=mirrored(batch.chunks))


def log(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


STUDENT = [0.1, 0.05, 0.2, 0.05, 0.25, 0.2, 0.1, 0.05]
FIRST, AFTER_2, AFTER_20, AFTER_201 = (
    [0.1, 0.1, 0.6, 0.15, 0.05], [0.5, 0.2, 0.1, 0.05, 0.15], [0.2, 0.3, 0.2, 0.1, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2],
)  # fmt: skip


def kl(p: list[float], q: list[float]) -> float:
    return sum(x / sum(p) * math.log(x / sum(p) / (y / sum(q))) for x, y in zip(p, q, strict=True))


def test_a_numeral_of_three_digits_is_the_number_computed_by_hand() -> None:
    teacher = log(FIRST, AFTER_2, AFTER_20, AFTER_201)
    terms = losses.projected_kl(log(STUDENT), teacher, batch_of(TOKEN[2, 0, 1]), NUMERALS, CHAIN)
    # Column 4 is the first piece of no token: W does not reach it, and it has no part in the teacher's distribution.
    first = kl(FIRST[:4], [0.1, 0.05, 0.2 + 0.25 + 0.2 + 0.1, 0.05])
    after_2 = kl([0.5, 0.2 + 0.1 + 0.05], [0.25 + 0.2 + 0.1, 0.2])
    after_20 = kl([0.3, 0.2, 0.2 + 0.1], [0.2, 0.1, 0.25])
    assert terms.numerator.item() == pytest.approx(first + after_2 + after_20, rel=1e-12)
    assert terms.denominator.item() == 1
    without = losses.projected_kl(log(STUDENT), teacher, batch_of(TOKEN[2, 0, 1]), NUMERALS, LossConfig(merge="first"))
    assert without.numerator.item() == pytest.approx(first, rel=1e-12)


def test_whether_a_token_ends_is_asked_of_the_row_after_it() -> None:
    teacher, batch = log(FIRST, AFTER_2, AFTER_20), batch_of(TOKEN[2, 0])
    inner = kl(FIRST[:4], [0.1, 0.05, 0.75, 0.05]) + kl([0.5, 0.35], [0.55, 0.2])
    numerator = losses.projected_kl(log(STUDENT), teacher, batch, NUMERALS, CHAIN).numerator.item()
    assert numerator == pytest.approx(inner + kl([0.3, 0.2, 0.3], [0.2, 0.1, 0.25]), rel=1e-12)
    at_the_end = replace(batch, teacher_labels=torch.tensor([[2, 0, IGNORED_LABEL]]))
    numerator = losses.projected_kl(log(STUDENT), teacher, at_the_end, NUMERALS, CHAIN).numerator.item()
    assert numerator == pytest.approx(inner, rel=1e-12)


def test_by_the_teachers_tokens_it_adds_up_to_the_divergence_between_tokens() -> None:
    """The chain rule: the mean over the teacher's sequences is KL between the distributions over student tokens."""
    rows = {(): FIRST, (2,): AFTER_2, (2, 0): AFTER_20}
    probability, total = {}, 0.0
    for pieces in PIECES[:-1]:
        p = 1.0
        for length in range(len(pieces) + 1):
            row = rows.get(tuple(pieces[:length]), [1, 1, 1, 1, 1])[:4]
            further = {q[length] for q in PIECES if len(q) > length and q[:length] == pieces[:length]}
            if length < len(pieces):
                p *= row[pieces[length]] / sum(row)
            elif further:
                p *= sum(x for column, x in enumerate(row) if column not in further) / sum(row)
        probability[tuple(pieces)] = p
    for pieces, p in probability.items():
        teacher = log(*(rows.get(pieces[:length], [1.0] * 5) for length in range(len(pieces) + 1)))
        batch = batch_of(TOKEN[pieces])
        total += p * losses.projected_kl(log(STUDENT), teacher, batch, NUMERALS, CHAIN).numerator.item()
    assert sum(probability.values()) == pytest.approx(1, rel=1e-12)
    tokens = [TOKEN[pieces] for pieces in probability]
    assert total == pytest.approx(kl(list(probability.values()), [STUDENT[token] for token in tokens]), rel=1e-12)


def test_a_token_in_other_pieces_than_its_own_has_the_first_piece_alone() -> None:
    teacher, batch = log(FIRST, AFTER_2, AFTER_20, AFTER_201), batch_of(TOKEN[2, 0, 1])
    other = replace(batch, teacher_labels=torch.tensor([[2, 0, 3, 4]]))
    numerator = losses.projected_kl(log(STUDENT), teacher, other, NUMERALS, CHAIN).numerator.item()
    assert numerator == pytest.approx(kl(FIRST[:4], [0.1, 0.05, 0.75, 0.05]), rel=1e-12)


def test_a_teachers_numeral_counts_as_its_first_digit_and_says_what_follows() -> None:
    """Column 7 of the teacher begins with nothing of the student's and has no part in its distribution."""
    students = log(FIRST, AFTER_2, AFTER_20, AFTER_201)
    terms = losses.projected_kl(students, log(STUDENT), mirrored_batch(TOKEN[2, 0, 1]), JOINED, CHAIN)
    first = kl([0.1, 0.05, 0.2 + 0.25 + 0.2 + 0.1, 0.05], FIRST[:4])
    after_2 = kl([0.25 + 0.2 + 0.1, 0.2], [0.5, 0.2 + 0.1 + 0.05 + 0.15])
    after_20 = kl([0.2, 0.1, 0.25], [0.3, 0.2, 0.2 + 0.1 + 0.2])
    assert terms.numerator.item() == pytest.approx(first + after_2 + after_20, rel=1e-12)
    dropped = losses.projected_kl(
        students, log(STUDENT), mirrored_batch(TOKEN[2, 0, 1]), JOINED, LossConfig(merge="first")
    )
    assert dropped.numerator.item() == pytest.approx(kl(STUDENT[:4], FIRST[:4]), rel=1e-12)


def test_a_teacher_whose_numerals_are_the_students_digits_has_no_loss_and_no_gradient() -> None:
    teacher = [0.1, 0.05, 0.2, 0.05, 0.25, 0.2, 0.1]
    rows = log(
        [0.1, 0.05, 0.75, 0.05],
        [0.55 / 0.75, 0.1, 0.1 / 0.75, 0.1 / 0.75 - 0.1],
        [0.1, 0.2 / 0.55, 0.1 / 0.55, 0.25 / 0.55 - 0.1],
        [0.25, 0.25, 0.25, 0.25],
    )
    student = torch.cat([rows, torch.full((4, 1), -1e4)], 1).requires_grad_()
    numerator = losses.projected_kl(
        student, log([*teacher, 0.05]), mirrored_batch(TOKEN[2, 0, 1]), JOINED, CHAIN
    ).numerator
    (grad,) = torch.autograd.grad(numerator, student)
    assert abs(numerator.item()) < 1e-14
    assert grad.abs().max() < 1e-14


def test_equal_conditionals_have_no_loss_and_no_gradient() -> None:
    after_2, after_20 = [0.55, 0.0, 0.1, 0.1], [0.0, 0.2, 0.1, 0.25]  # the rest of either row is END
    teacher = log([0.1, 0.05, 0.75, 0.05, 0.3], [*after_2, 0.3], [*after_20, 0.3], AFTER_201).clamp_min(-1e4)
    student = log(STUDENT).requires_grad_()
    numerator = losses.projected_kl(student, teacher, batch_of(TOKEN[2, 0, 1]), NUMERALS, CHAIN).numerator
    (grad,) = torch.autograd.grad(numerator, student)
    assert abs(numerator.item()) < 1e-14
    assert grad.abs().max() < 1e-14


def oracle(problem: Problem, student: Tensor, config: LossConfig) -> Tensor:
    """By a loop over chunks, beginnings and tokens."""
    pieces, teacher_pieces = (
        [table.of_token(token) for token in range(len(table.ends))]
        for table in (problem.matrix.pieces, problem.matrix.teacher_pieces)
        if table is not None
    )
    reached = sorted({taus[0] for taus in pieces if taus})
    counts_as = {token: token for token in reached}
    for token, sigmas in enumerate(teacher_pieces):
        if token not in reached and sigmas and pieces[sigmas[0]]:
            counts_as[token] = pieces[sigmas[0]][0]
    assert len(counts_as) > len(reached) + 5
    teacher_pieces = [sigmas if token in counts_as else [] for token, sigmas in enumerate(teacher_pieces)]
    scaled = problem.teacher_logits.detach() / config.temperature
    whole = torch.full_like(scaled, -torch.inf)
    whole[:, list(counts_as)] = scaled[:, list(counts_as)]
    whole = whole.softmax(-1)
    teachers = torch.zeros_like(whole)
    for token, column in counts_as.items():
        teachers[:, column] += whole[:, token]
    probabilities = (student[:, : len(pieces)] / config.temperature).softmax(-1)
    student_labels, teacher_labels = problem.batch.student_labels.flatten(), problem.batch.teacher_labels.flatten()
    chunks, loss, mirrored_steps = problem.batch.chunks.valid(), student.new_zeros(()), 0
    for a, b, c, d in zip(
        *(x.tolist() for x in (chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end)),
        strict=True,
    ):
        q = sums_of(probabilities[a], pieces, [])
        loss = loss + divergence({column: teachers[c, column] for column in reached}, q, config)
        label, seen = int(student_labels[a]), teacher_labels[c:d].tolist()
        if b - a == 1 and label >= 0 and pieces[label] == seen:
            for length in range(1, len(seen) + 1):
                if length < len(seen) or int(teacher_labels[d]) != IGNORED_LABEL:
                    q = sums_of(probabilities[a], pieces, seen[:length])
                    loss = loss + divergence(at_bins(teachers[c + length], q), q, config)
        label, seen = int(teacher_labels[c]), student_labels[a:b].tolist()
        if d - c == 1 and label >= 0 and teacher_pieces[label] == seen:
            for length in range(1, len(seen)):
                p = sums_of(whole[c], teacher_pieces, seen[:length])
                loss = loss + divergence(p, at_bins(probabilities[a + length], p), config)
                mirrored_steps += len(p) > 1
    assert mirrored_steps > 1
    return loss * config.temperature**2


def sums_of(probabilities: Tensor, pieces: list[list[int]], seen: list[int]) -> dict[int, Tensor]:
    """The probability of what may follow the pieces seen, -1 is the token's end."""
    firsts = {taus[0] for taus in pieces if taus}
    sums: dict[int, Tensor] = {}
    for token, taus in enumerate(pieces):
        if taus[: len(seen)] == seen and taus:
            after = taus[len(seen)] if len(taus) > len(seen) and taus[len(seen)] in firsts else -1
            sums[after] = sums.get(after, 0) + probabilities[token]
    return sums


def at_bins(row: Tensor, bins: dict[int, Tensor]) -> dict[int, Tensor]:
    """What another side's row gives the same outcomes."""
    found = {column: row[column] for column in bins if column >= 0}
    rest = 1 - sum(found.values(), start=row.new_zeros(()))
    return found | ({-1: rest} if -1 in bins else {})


def divergence(teacher: dict[int, Tensor], student: dict[int, Tensor], config: LossConfig) -> Tensor:
    p, q = (torch.stack([side[column] for column in sorted(teacher)]) for side in (teacher, student))
    p, q = p / p.sum(), q / q.sum()
    if len(p) == 1:
        return q.new_zeros(())
    return (p * (p / q).log()).sum() if config.direction == "forward" else (q * (q / p).log()).sum()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_equal_a_loop_over_every_token(direction: Any, temperature: float) -> None:
    problem = chain_problem(5, student_padding=2, teacher_padding=3)
    config = replace(CHAIN, direction=direction, temperature=temperature)
    student = problem.student_logits.clone().requires_grad_()
    terms = losses.projected_kl(student, problem.teacher_logits, problem.batch, problem.matrix, config)
    expected = oracle(problem, student, config)
    assert terms.numerator.item() == pytest.approx(expected.item(), rel=1e-12)
    actual_grad, expected_grad = (torch.autograd.grad(x, student)[0] for x in (terms.numerator, expected))
    torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-10, atol=1e-12)
    first_alone = losses.projected_kl(
        student, problem.teacher_logits, problem.batch, problem.matrix, replace(config, chain=False)
    )
    assert abs(terms.numerator.item() / first_alone.numerator.item() - 1) > 0.05


def test_float32_is_near_float64_also_where_the_probabilities_are_small() -> None:
    problem = chain_problem(6)
    student, teacher = problem.student_logits - torch.arange(40), problem.teacher_logits * 3
    exact = losses.projected_kl(student, teacher, problem.batch, problem.matrix, CHAIN).numerator
    low = losses.projected_kl(student.float(), teacher.float(), problem.batch, problem.matrix, CHAIN).numerator
    assert low.item() == pytest.approx(exact.item(), rel=1e-5)


def test_only_beginnings_with_a_choice_are_kept() -> None:
    assert NUMERALS.pieces is not None
    tree = piece_tree(NUMERALS.pieces, Here(np.arange(len(PIECES)), np.array([0, 1, 2, 3, -1])))
    assert len(tree.bin_starts) - 1 == 2  # "2" and "20": END or 0, and END, 1 or 2
    assert tree.bin_columns.tolist() == [-1, 0, -1, 1, 2]
    assert tree.bin_is_end.tolist() == [True, False, True, False, False]
    assert [tree.tokens[a:b].tolist() for a, b in itertools.pairwise(tree.token_starts.tolist())] == [
        [2, 4, 5, 6],
        [4, 5, 6],
    ]


def test_what_a_chain_cannot_do_is_refused_in_words() -> None:
    for settings, problem in (
        ({"merge": "mean"}, "needs loss.merge first, got mean"),
        ({"mode": "h_kl"}, "needs loss.mode p_kl, got h_kl"),
        ({"teacher_top_k": 8}, "needs loss.teacher_top_k null, got 8"),
        ({"one_to_one_only": True}, "needs loss.one_to_one_only false, got True"),
    ):
        with pytest.raises(ConfigError, match=problem):
            LossConfig(**{"merge": "first", "chain": True, **settings})  # pyright: ignore[reportArgumentType]
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    with pytest.raises(ConfigError, match="which leaves nothing of W to learn"):
        TeacherConfig(model=model, checkpoint="teacher", loss=CHAIN, learn_projection=True)
    problem = chain_problem(7)
    for missing in ("pieces", "teacher_pieces"):
        without = replace(problem.matrix, **{missing: None})
        with pytest.raises(ProjectionError, match="does not say which pieces the tokens have; build it again"):
            losses.projected_kl(problem.student_logits, problem.teacher_logits, problem.batch, without, CHAIN)
    with pytest.raises(ConfigError, match="leaves no weights to learn"):
        losses.projected_kl(
            problem.student_logits, problem.teacher_logits, problem.batch, problem.matrix, CHAIN, torch.ones(40, 1)
        )
