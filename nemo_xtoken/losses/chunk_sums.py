"""What a block of chunks adds up to: the loss, and what a user wants to know about the two models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.losses.vocabulary import Vocabulary


@dataclass(frozen=True)
class ChunkSums:
    """Partial sums over chunks, without the factor temperature².

    loss              scalar, differentiable
    teacher_entropy   scalar, nats, of the teacher's distribution that the loss compares
    top_1_agreement   scalar, chunks in which both sides' likeliest columns are the same token
    """

    loss: Tensor
    teacher_entropy: Tensor
    top_1_agreement: Tensor


@torch.no_grad()
def entropy(log_probs: Tensor) -> Tensor:
    """Partial sum over chunks of -p·log p: [c, local] -> scalar."""
    return -(log_probs.exp() * log_probs).sum()


@torch.no_grad()
def agreement(
    teacher_log: Tensor, student_log: Tensor, pairs: tuple[Tensor, Tensor] | None, vocabulary: Vocabulary
) -> Tensor:
    """Partial number of chunks whose likeliest column is the same on both sides: [c, local] twice -> scalar.

    pairs  the local columns (student's, teacher's) that stand for the same token; None: both have the same columns
    """
    teacher_best = vocabulary.maximum(teacher_log).unsqueeze(-1)
    student_best = vocabulary.maximum(student_log).unsqueeze(-1)
    if pairs is not None:
        student_log, teacher_log = student_log.index_select(1, pairs[0]), teacher_log.index_select(1, pairs[1])
    return ((teacher_log >= teacher_best) & (student_log >= student_best)).any(-1).sum().to(teacher_log.dtype)
