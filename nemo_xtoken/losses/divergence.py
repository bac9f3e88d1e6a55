"""Kullback-Leibler divergence of two distributions over the same columns, in either direction."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_xtoken.config import Direction
from nemo_xtoken.losses.vocabulary import Vocabulary, log_sum_exp, total


def probability_floor(dtype: torch.dtype) -> float:
    """Smallest normal number: what a probability that underflowed counts as, so that its logarithm is finite."""
    return torch.finfo(dtype).tiny


_SLICE = 1 << 16
"""Elements whose products `inner` makes at a time: they stay in the cache."""


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Sum of x·y over everything, without a temporary of their shape, to the rounding of its type.

    A CPU's dot product adds to a few running sums: over 64 rows of 110,000 columns it is 6e-4 off.
    """
    x, y = x.reshape(-1), y.reshape(-1)
    if x.is_cuda:
        return torch.dot(x, y)
    slices = (slice(start, start + _SLICE) for start in range(0, max(len(x), 1), _SLICE))
    parts = [(x[part] * y[part]).sum() for part in slices]
    return torch.stack(parts).sum()


def divergence_terms(teacher_log: Tensor, student_log: Tensor, direction: Direction) -> Tensor:
    """The terms that KL sums over columns: forward T·(log T - log S), reverse S·(log S - log T); all [c, local]."""
    if direction == "forward":
        return teacher_log.exp() * (teacher_log - student_log)
    return student_log.exp() * (student_log - teacher_log)


def divergence(teacher_log: Tensor, student_log: Tensor, direction: Direction) -> Tensor:
    """Partial KL over the local columns: [c, local], [c, local] -> [c]."""
    return divergence_terms(teacher_log, student_log, direction).sum(-1)


def divergence_and_entropy(teacher_log: Tensor, student_log: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Partial sums over chunks of KL and of the teacher's entropy, detached: [c, local] twice -> two scalars.

    The gradient is the student's; the teacher is a constant.
    """
    with torch.no_grad():
        teacher = teacher_log.exp()
        entropy = -inner(teacher, teacher_log)
    if direction == "forward":
        return cast("Tensor", _ForwardDivergence.apply(teacher, teacher_log, student_log)), entropy  # pyright: ignore
    return divergence(teacher_log, student_log, direction).sum(), entropy


class _ForwardDivergence(torch.autograd.Function):
    """Sum of T·(log T - log S). As cross-entropy less entropy it would lose its digits where both models are near."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, teacher_log: Tensor, student_log: Tensor) -> Tensor:
        ctx.save_for_backward(teacher)
        return inner(teacher, teacher_log - student_log)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:  # pyright: ignore
        (teacher,) = ctx.saved_tensors
        return None, None, teacher * -grads[0]


def renormalised_logs(teacher_log: Tensor, student: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Logs of both sides, normalised over the given columns of all holders: [c, local] twice.

    teacher_log  [c, local] log of the teacher's side up to a constant per chunk
    student      [c, local] the student's side up to a factor per chunk
    """
    floor = probability_floor(student.dtype)
    student_total = total(student, vocabulary).clamp_min(floor).log().unsqueeze(-1)
    teacher_total = log_sum_exp(teacher_log, vocabulary).unsqueeze(-1)
    return teacher_log - teacher_total, student.clamp_min(floor).log() - student_total


def divergence_on(
    kept: Tensor, teacher_log: Tensor, student: Tensor, vocabulary: Vocabulary, direction: Direction
) -> Tensor:
    """Partial KL after both sides are normalised over the kept columns of each chunk, [c, local] bool: -> [c].

    A chunk without such a column has a finite value without meaning. Other arguments as in `renormalised_logs`.
    """
    # Half the least number stands in for log 0, so that no gradient meets inf - inf.
    teacher_log = teacher_log.masked_fill(~kept, torch.finfo(teacher_log.dtype).min / 2)
    logs = renormalised_logs(teacher_log, student.masked_fill(~kept, 0), vocabulary)
    return divergence_terms(*logs, direction).masked_fill(~kept, 0).sum(-1)
