"""What a block of chunks adds up to: the loss, and what a user wants to know about the two models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.config import LossMode
from nemo_xtoken.losses.divergence import inner
from nemo_xtoken.losses.vocabulary import Vocabulary

UNCOMMON_MASS = ("student_uncommon_mass", "teacher_uncommon_mass")
METRICS = ("teacher_entropy", "top_1_agreement", *UNCOMMON_MASS)
"""What a mode may report of its chunks besides the loss."""


@dataclass(frozen=True)
class ChunkSums:
    """Partial sums over chunks, without the factor temperature².

    loss              scalar, differentiable
    teacher_entropy   scalar, nats, of the teacher's distribution that the loss compares
    top_1_agreement   scalar, chunks in which both sides' likeliest columns are the same token
    uncommon_mass     two scalars, the student's and the teacher's probability of tokens outside of the common set, in
                      the chunk distributions that the loss compares; None for a mode without a common set. Over
                      several rows a teacher's mean of logs, and `first` and `last` on either side, sum to less than 1
    """

    loss: Tensor
    teacher_entropy: Tensor
    top_1_agreement: Tensor
    uncommon_mass: tuple[Tensor, Tensor] | None = None

    def metrics(self) -> dict[str, Tensor]:
        """Those of METRICS that the mode has."""
        masses = {} if self.uncommon_mass is None else dict(zip(UNCOMMON_MASS, self.uncommon_mass, strict=True))
        return {"teacher_entropy": self.teacher_entropy, "top_1_agreement": self.top_1_agreement, **masses}


def metrics_of(mode: LossMode) -> tuple[str, ...]:
    """Those of METRICS that a mode has."""
    has_common_set = mode in ("gold", "h_kl", "strict_top_k")
    return tuple(name for name in METRICS if has_common_set or name not in UNCOMMON_MASS)


@torch.no_grad()
def entropy(log_probs: Tensor) -> Tensor:
    """Partial sum over chunks of -p·log p: [c, local] -> scalar."""
    return -inner(log_probs.exp(), log_probs)


@torch.no_grad()
def mass(log_probs: Tensor) -> Tensor:
    """Partial sum over chunks of the probability of the given columns: [c, columns] -> scalar."""
    return log_probs.exp().sum()


@torch.no_grad()
def agreement(
    teacher_log: Tensor, student_log: Tensor, pairs: tuple[Tensor, Tensor] | None, vocabulary: Vocabulary
) -> Tensor:
    """Partial number of chunks whose likeliest column is the same on both sides: [c, local] twice -> scalar.

    pairs  the local columns (student's, teacher's) that stand for the same token; None: both have the same columns
    """
    teacher_best, student_best = vocabulary.maximum(teacher_log), vocabulary.maximum(student_log)
    if pairs is not None:
        student_log, teacher_log = student_log.index_select(1, pairs[0]), teacher_log.index_select(1, pairs[1])
    return pair_agreement(teacher_log, student_log, teacher_best, student_best)


@torch.no_grad()
def pair_agreement(
    teacher_common: Tensor, student_common: Tensor, teacher_best: Tensor, student_best: Tensor
) -> Tensor:
    """The same from pairs of columns that are side by side, [c, pairs] twice, and each side's maxima, [c] twice."""
    at_best = (teacher_common >= teacher_best.unsqueeze(-1)) & (student_common >= student_best.unsqueeze(-1))
    return at_best.any(-1).sum().to(teacher_common.dtype)
