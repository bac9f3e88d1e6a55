"""Kullback-Leibler divergence of two distributions over the same columns, in either direction."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.config import Direction
from nemo_xtoken.losses.vocabulary import Vocabulary, log_sum_exp


def probability_floor(dtype: torch.dtype) -> float:
    """Smallest normal number: what a probability that underflowed counts as, so that its logarithm is finite."""
    return torch.finfo(dtype).tiny


def divergence(teacher_log: Tensor, student_log: Tensor, direction: Direction) -> Tensor:
    """Partial KL over the local columns: [c, local], [c, local] -> [c].

    forward: sum_t T·(log T - log S); reverse: sum_t S·(log S - log T).
    """
    if direction == "forward":
        return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)
    return (student_log.exp() * (student_log - teacher_log)).sum(-1)


def renormalised_divergence(
    teacher_log: Tensor, student: Tensor, vocabulary: Vocabulary, direction: Direction
) -> Tensor:
    """Partial KL after both sides are normalised over the given columns of all holders: -> [c].

    teacher_log  [c, local] log of the teacher's side up to a constant per chunk
    student      [c, local] the student's side up to a factor per chunk
    """
    teacher_log = teacher_log - log_sum_exp(teacher_log, vocabulary).unsqueeze(-1)
    student_total = vocabulary.total(student).unsqueeze(-1)
    floor = probability_floor(student.dtype)
    student_log = student.clamp_min(floor).log() - student_total.clamp_min(floor).log()
    return divergence(teacher_log, student_log, direction)
