"""The public losses, a block at a time, against the same formulas on full logits by autograd; bad logits by name."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken import losses
from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError, LogitsError
from nemo_xtoken.losses.blocks import chunk_blocks, one_to_one
from nemo_xtoken.losses.common_set import common_set_sums, merged_student_log, merged_teacher_log
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.merge import run_rows
from nemo_xtoken.losses.partition import take_apart, whole_partition
from nemo_xtoken.losses.projected_kl import projected_kl_sums, top_columns
from nemo_xtoken.losses.sparse_projection import SparseProjection
from nemo_xtoken.losses.vocabulary import WholeVocabulary, log_softmax
from nemo_xtoken.types import LossTerms
from tests.problems import Problem, random_problem

LOSSES: dict[str, Any] = {
    "p_kl": losses.projected_kl,
    "h_kl": losses.hybrid_kl,
    "gold": losses.gold,
    "uld": losses.uld,
    "strict_top_k": losses.strict_top_k,
}
METRICS = ("kd", "teacher_entropy", "top_1_agreement")
MERGES_AND_DIRECTIONS = list(itertools.product(("mean", "first", "last"), ("forward", "reverse")))


def dense_sums(problem: Problem, logits: Tensor, config: LossConfig) -> tuple[Tensor, list[float]]:
    """The oracle: all chunks at once, whole softmaxes, dense autograd. The loss and METRICS."""
    whole, chunks = WholeVocabulary(), counted(problem.batch.chunks, config)
    student_log = log_softmax(logits[:, : problem.matrix.student_vocab_size], whole, config.temperature)
    teacher_logits = problem.teacher_logits[:, : problem.matrix.teacher_vocab_size]
    if config.mode == "p_kl":
        projection = SparseProjection.from_matrix(problem.matrix)
        reached, columns = teacher_logits[:, projection.teacher_columns], None
        if config.teacher_top_k is not None:
            rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end)
            columns = top_columns(reached[rows].amax(0), config.teacher_top_k)
            reached = reached[:, columns]
        sums = projected_kl_sums(student_log, reached, chunks, projection, columns, config, whole)
    else:
        teacher_log = log_softmax(teacher_logits, whole, config.temperature)
        labels = problem.batch.student_labels.flatten(), problem.batch.teacher_labels.flatten()
        student = merged_student_log(student_log, labels[0], chunks, config.merge, whole)
        teacher = merged_teacher_log(teacher_log, labels[1], chunks, config.merge, whole)
        partition = whole_partition(problem.matrix, config, logits.device)
        sums = common_set_sums(student, teacher, partition, config, whole)
    loss = sums.loss * config.temperature**2
    return loss, [loss.item(), sums.teacher_entropy.item(), sums.top_1_agreement.item()]


def loss_of(problem: Problem, logits: Tensor, config: LossConfig) -> LossTerms:
    return LOSSES[config.mode](logits, problem.teacher_logits, problem.batch, problem.matrix, config)


@pytest.mark.parametrize(("merge", "direction"), MERGES_AND_DIRECTIONS)
@pytest.mark.parametrize("mode", LOSSES)
@pytest.mark.parametrize("block_rows", [1, 5, 512])
def test_blocks_have_the_value_gradient_and_metrics_of_full_logits(
    merge: Any, direction: Any, mode: Any, block_rows: int
) -> None:
    problem = random_problem(31, student_padding=2, teacher_padding=3, length=40, teacher_length=44)
    base = LossConfig(mode=mode, merge=merge, direction=direction, block_rows=block_rows, strict_top_k=4)
    for changes in ({}, {"temperature": 1.7, "teacher_top_k": 6, "sorted_cap": 3}, {"one_to_one_only": True}):
        config = replace(base, **changes)
        logits, dense = (problem.student_logits.clone().requires_grad_() for _ in range(2))
        expected, metrics = dense_sums(problem, dense, config)
        terms = loss_of(problem, logits, config)
        (3 * terms.numerator).backward()
        (3 * expected).backward()
        assert [terms.metrics[name].total.item() for name in METRICS] == pytest.approx(metrics, rel=1e-10)
        torch.testing.assert_close(logits.grad, dense.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("merge", "direction"), MERGES_AND_DIRECTIONS)
@pytest.mark.parametrize("mode", LOSSES)
def test_gradients_are_those_of_finite_differences(merge: Any, direction: Any, mode: Any) -> None:
    problem = random_problem(4, student_vocab=6, teacher_vocab=5, sequences=1, length=6, teacher_length=6)
    config = LossConfig(mode=mode, merge=merge, direction=direction, temperature=1.3, teacher_top_k=3, strict_top_k=2)
    logits = problem.student_logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(problem, x, config).numerator, logits)


def test_only_one_row_chunks_may_leave_columns_out_of_the_softmax() -> None:
    """The mean over several rows weighs each by its own denominator: cutting these as well would change the loss."""
    problem = random_problem(33)
    config = LossConfig(teacher_top_k=5)
    single, others = one_to_one(problem.batch.chunks)
    assert single.mask.any()
    assert others.mask.any()
    rows, _ = run_rows(*(getattr(problem.batch.chunks.valid(), f"teacher_{at}") for at in ("start", "end")))
    whole = SparseProjection.from_matrix(problem.matrix)
    projection = whole.on(top_columns(problem.teacher_logits[rows].amax(0)[whole.teacher_columns], 5))
    student_columns, tied = projection.tied()
    assert len(student_columns) < problem.matrix.student_vocab_size
    teacher = problem.teacher_logits[:, projection.teacher_columns]
    for chunks, same in ((single, True), (others, False)):
        cut, full = (
            projected_kl_sums(logits.log_softmax(-1), teacher, chunks, w, None, config, WholeVocabulary()).loss.item()
            for logits, w in (
                (problem.student_logits[:, student_columns], tied),
                (problem.student_logits, projection),
            )
        )
        assert (abs(cut - full) < 1e-10) == same


def test_blocks_hold_every_chunk_once_and_no_more_rows_than_asked() -> None:
    chunks = random_problem(34).batch.chunks.valid()
    blocks = list(chunk_blocks(chunks, 40, 4))
    assert (
        torch.cat([b.student_rows for b in blocks]).tolist()
        == run_rows(chunks.student_start, chunks.student_end)[0].tolist()
    )
    assert sum(len(b.chunks.mask) for b in blocks) == len(chunks.mask)
    assert max(len(b.student_rows) for b in blocks) <= 4
    assert len(list(chunk_blocks(chunks, 2**20, 512))) == len(chunks.mask)


@pytest.mark.parametrize("mode", ["p_kl", "h_kl"])
def test_a_retained_graph_has_the_same_gradient_each_time(mode: Any) -> None:
    problem, config = random_problem(35), LossConfig(mode=mode, block_rows=3)
    logits = problem.student_logits.clone().requires_grad_()
    numerator = loss_of(problem, logits, config).numerator
    first, second = (torch.autograd.grad(2 * numerator, logits, retain_graph=True)[0].clone() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    (third,) = torch.autograd.grad(numerator, logits)
    torch.testing.assert_close(2 * third, first)
    with pytest.raises(RuntimeError, match="second time"):
        numerator.backward()


def test_a_second_derivative_is_refused() -> None:
    problem = random_problem(36)
    logits = problem.student_logits.clone().requires_grad_()
    numerator = loss_of(problem, logits, LossConfig()).numerator
    with pytest.raises(RuntimeError, match="can't differentiate twice: leave out create_graph"):
        torch.autograd.grad(numerator + logits.square().sum(), logits, create_graph=True)


def test_bfloat16_logits_are_compared_in_float32() -> None:
    problem = random_problem(37)
    low = problem.student_logits.bfloat16().requires_grad_()
    same = replace(problem, teacher_hidden=problem.teacher_logits.bfloat16(), teacher_head=torch.eye(19).bfloat16())
    exact = replace(problem, teacher_hidden=same.teacher_hidden.double(), teacher_head=torch.eye(19).double())
    modes: Any = LOSSES
    for mode in modes:
        terms = loss_of(same, low, LossConfig(mode=mode))
        expected = loss_of(exact, low.detach().double(), LossConfig(mode=mode)).numerator.item()
        assert terms.numerator.dtype == torch.float32
        assert terms.numerator.item() == pytest.approx(expected, rel=1e-5)
        (grad,) = torch.autograd.grad(terms.numerator, low)
        assert grad.dtype == torch.bfloat16


def test_take_apart_has_the_gradient_of_indexing() -> None:
    x, y = (torch.arange(12.0).view(2, 6).requires_grad_() for _ in range(2))
    columns = torch.tensor([4, 0]), torch.tensor([1, 5])
    a, b = take_apart(x, *columns)
    torch.testing.assert_close((a, b), (y[:, columns[0]], y[:, columns[1]]))
    (a.square().sum() + 3 * b.sum()).backward()
    (y[:, columns[0]].square().sum() + 3 * y[:, columns[1]].sum()).backward()
    torch.testing.assert_close(x.grad, y.grad)


# --- bad logits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("mode", LOSSES)
def test_logits_that_are_not_finite_are_named(value: float, side: str, mode: Any) -> None:
    problem = random_problem(38)
    chunk = problem.batch.chunks.valid()
    single, _ = one_to_one(chunk)
    student, teacher = problem.student_logits.clone(), problem.teacher_logits.clone()
    row = int((single.student_start if side == "student" else single.teacher_start)[1])
    exact = int(problem.matrix.exact_rows.nonzero()[0][0])
    column = exact if side == "student" else int(problem.matrix.indices[exact, 0])
    (student if side == "student" else teacher)[row, column] = value
    if (value, side) == (-math.inf, "student") and mode not in ("gold", "h_kl"):
        logits = student.requires_grad_()
        numerator = LOSSES[mode](logits, teacher, problem.batch, problem.matrix, LossConfig()).numerator
        assert torch.autograd.grad(numerator, logits)[0].isfinite().all()  # a probability of 0 has a finite loss there
        return
    for top_k in (None, 19):
        with pytest.raises(LogitsError, match=rf"row {row}, column {column} of the {side}'s \(1 in all\)"):
            LOSSES[mode](student, teacher, problem.batch, problem.matrix, LossConfig(mode=mode, teacher_top_k=top_k))


def test_a_teacher_column_of_nan_is_not_dropped_from_the_top_columns_in_silence() -> None:
    problem = random_problem(39)
    teacher = problem.teacher_logits.clone()
    teacher[int(problem.batch.chunks.valid().teacher_start[0]), int(problem.matrix.indices.max())] = math.nan
    with pytest.raises(LogitsError, match="of the teacher's"):
        losses.projected_kl(problem.student_logits, teacher, problem.batch, problem.matrix, LossConfig(teacher_top_k=2))


def test_logits_of_a_wrong_shape_say_what_was_expected() -> None:
    p = random_problem(40)
    student, teacher = p.student_logits, p.teacher_logits
    for wrong, other, message in (
        (student.view(2, 20, 23), teacher, r"student logits \[40, 23 or more\].* got \[2, 20, 23\] torch.float64"),
        (student[:-1], teacher, r"student logits \[40, 23 or more\].* got \[39, 23\]"),
        (student.long(), teacher, "float dtype.* torch.int64"),
        (student, teacher[:-1], r"teacher logits \[48, 19 or more\].* got \[47, 19\]"),
    ):
        with pytest.raises(LogitsError, match=message):
            losses.projected_kl(wrong, other, p.batch, p.matrix, LossConfig())
    with pytest.raises(ConfigError, match="19 teacher ids but the teacher's logits have 18 columns"):
        losses.gold(student, teacher[:, :18], p.batch, p.matrix, LossConfig())
    chunks = replace(p.batch.chunks, student_end=p.batch.chunks.student_end + 40)
    with pytest.raises(LogitsError, match=r"the last chunk ends at student row \d+ but there are 40 rows"):
        losses.gold(student, teacher, replace(p.batch, chunks=chunks), p.matrix, LossConfig())
