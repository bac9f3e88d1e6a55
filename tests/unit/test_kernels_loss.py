"""P-KL put together from the kernels against the pure loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_xtoken import losses
from nemo_xtoken.config import LossConfig
from nemo_xtoken.kernels import mean_logits, mean_probabilities, scatter_columns, softmax_statistics
from nemo_xtoken.kernels.choice import Implementation
from nemo_xtoken.losses.divergence import divergence
from nemo_xtoken.losses.sparse_projection import SparseProjection
from nemo_xtoken.losses.vocabulary import WholeVocabulary
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows
from tests.problems import random_problem

TEMPERATURE = 1.5


def loss_of_kernels(
    student_logits: Tensor,
    teacher_logits: Tensor,
    chunks: ChunkRows,
    matrix: ProjectionMatrix,
    weights: Tensor,
    implementation: Implementation,
) -> Tensor:
    device, whole = student_logits.device, WholeVocabulary()
    w = SparseProjection.from_matrix(matrix, device, weights)
    normaliser = softmax_statistics(student_logits, temperature=TEMPERATURE, implementation=implementation)
    student = mean_probabilities(
        student_logits, normaliser.log_sum_exp(whole), chunks.student_start, chunks.student_end, TEMPERATURE,
        implementation=implementation,
    )  # fmt: skip
    projected = scatter_columns(
        student, w.rows, w.columns, w.weights, len(w.teacher_columns), implementation=implementation
    )
    teacher = mean_logits(
        teacher_logits.index_select(1, w.teacher_columns), chunks.teacher_start, chunks.teacher_end, TEMPERATURE,
        implementation=implementation,
    )  # fmt: skip
    student_log = (projected / projected.sum(-1, keepdim=True)).log()
    return divergence(teacher.log_softmax(-1), student_log, "forward").sum() * TEMPERATURE**2


def test_p_kl_from_the_programs_is_p_kl(kernel_device: str) -> None:
    assert_is_p_kl("triton", kernel_device, torch.float32)


def test_p_kl_from_the_references_is_p_kl() -> None:
    assert_is_p_kl("torch", "cpu", torch.float64)


def assert_is_p_kl(implementation: Implementation, device: str, dtype: torch.dtype) -> None:
    problem = random_problem(student_vocab=61, teacher_vocab=43)
    config = LossConfig(temperature=TEMPERATURE, teacher_top_k=None)
    inputs = [problem.student_logits, torch.from_numpy(problem.matrix.weights)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = losses.projected_kl(
        exact[0], problem.teacher_logits.double(), problem.batch, problem.matrix, config, exact[1]
    ).numerator
    leaves = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    chunks = problem.batch.to(device).chunks.valid()
    teacher_logits = problem.teacher_logits.to(device, dtype)
    value = loss_of_kernels(leaves[0], teacher_logits, chunks, problem.matrix, leaves[1], implementation)
    relative, absolute = (1e-10, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    assert value.item() == pytest.approx(expected.item(), rel=relative)
    gradients = zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, exact), strict=True)
    for gradient, right in gradients:
        torch.testing.assert_close(gradient.double().cpu(), right, rtol=relative, atol=absolute)
