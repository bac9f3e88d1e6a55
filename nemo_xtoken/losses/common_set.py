"""Losses on a partition of the vocabulary into common and uncommon tokens: GOLD, H-KL and, without a common part, ULD.

All three see the two chunk distributions over the full vocabularies, [c, V_S] and [c, V_T], without renormalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig, Merge
from nemo_xtoken.losses.divergence import divergence, probability_floor
from nemo_xtoken.losses.merge import (
    label_log_probability,
    observed_log_probability,
    representative_row,
    run_mean,
)
from nemo_xtoken.losses.projected_kl import check_widths, chunk_terms
from nemo_xtoken.losses.vocabulary import WholeVocabulary, log_softmax
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.partition import common_set
from nemo_xtoken.types import DistillBatch, LossTerms


def merged_log_probs(
    log_probs: Tensor, labels: Tensor, start: Tensor, end: Tensor, how: Merge, *, arithmetic: bool
) -> Tensor:
    """Log of the chunk distribution with its factor: [rows, V], [rows] -> [c, V].

    arithmetic  `mean` averages probabilities (the student's side) instead of log-probabilities (the teacher's)
    """
    if how == "mean" and arithmetic:
        return run_mean(log_probs.exp(), start, end).clamp_min(probability_floor(log_probs.dtype)).log()
    if how == "mean":
        return run_mean(log_probs, start, end)
    observed = observed_log_probability(label_log_probability(log_probs, labels), start, end, how)
    return log_probs.index_select(0, representative_row(start, end, how)) + observed.unsqueeze(-1)


def sorted_l1(student: Tensor, teacher: Tensor, cap: int) -> Tensor:
    """L1 distance of two descending sorted rows, the longer one cut to the shorter and both to cap: [c, *] -> [c]."""
    length = min(student.shape[-1], teacher.shape[-1], cap)
    ordered = (x.topk(length, dim=-1).values for x in (student, teacher))
    left, right = ordered
    return (left - right).abs().sum(-1)


def _others(size: int, ids: Tensor) -> Tensor:
    """All ids below size that are not in ids, ascending."""
    kept = torch.ones(size, dtype=torch.bool, device=ids.device)
    kept[ids] = False
    return kept.nonzero().squeeze(-1)


def _partition_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    batch: DistillBatch,
    matrix: ProjectionMatrix,
    config: LossConfig,
    common: tuple[Tensor, Tensor],
) -> LossTerms:
    """KL on the common pairs plus sorted L1 on the rest, for every valid chunk."""
    check_widths(student_logits, teacher_logits, matrix)
    chunks, whole = batch.chunks.valid(), WholeVocabulary()
    student_log = merged_log_probs(
        log_softmax(student_logits[:, : matrix.student_vocab_size], whole, config.temperature),
        batch.student_labels.flatten(), chunks.student_start, chunks.student_end, config.merge, arithmetic=True,
    )  # fmt: skip
    teacher_log = merged_log_probs(
        log_softmax(teacher_logits[:, : matrix.teacher_vocab_size], whole, config.temperature),
        batch.teacher_labels.flatten(), chunks.teacher_start, chunks.teacher_end, config.merge, arithmetic=False,
    )  # fmt: skip
    student_ids, teacher_ids = common
    shared = divergence(
        teacher_log.index_select(1, teacher_ids), student_log.index_select(1, student_ids), config.direction
    )
    student_rest = student_log.index_select(1, _others(student_log.shape[1], student_ids)).exp()
    teacher_rest = teacher_log.index_select(1, _others(teacher_log.shape[1], teacher_ids)).exp()
    return chunk_terms(shared + sorted_l1(student_rest, teacher_rest, config.sorted_cap), config)


def _pairs(matrix: ProjectionMatrix, threshold: float, device: torch.device) -> tuple[Tensor, Tensor]:
    student_ids, teacher_ids = common_set(matrix, threshold)
    return torch.from_numpy(student_ids).to(device), torch.from_numpy(teacher_ids).to(device)


def gold(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """GOLD: KL on the exact pairs, both softmaxes over the full vocabulary, plus sorted L1 on all other tokens.

    Its gradient pushes down every uncommon student token (arXiv 2605.21699): dL/dz_j = p_S[j]·sum_{t in C} p_T[t].
    Shapes as in `projected_kl`.
    """
    common = _pairs(matrix, 1.0, student_logits.device)
    return _partition_loss(student_logits, teacher_logits, batch, matrix, config, common)


def hybrid_kl(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """H-KL: GOLD whose common set also holds (s, argmax_t W[s, t]) where that weight reaches `hybrid_threshold`."""
    common = _pairs(matrix, config.hybrid_threshold, student_logits.device)
    return _partition_loss(student_logits, teacher_logits, batch, matrix, config, common)


def uld(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """ULD: sorted L1 over the two whole vocabularies, no partition (arXiv 2402.12030). Shapes as in `projected_kl`."""
    empty = torch.empty(0, dtype=torch.int64, device=student_logits.device)
    return _partition_loss(student_logits, teacher_logits, batch, matrix, config, (empty, empty))
