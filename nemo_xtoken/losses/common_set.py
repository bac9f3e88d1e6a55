"""Losses on a partition into common and uncommon tokens: GOLD, H-KL, strict top-k and, without a common part, ULD.

All see the two chunk distributions over the full vocabularies, [c, V_S] and [c, V_T].
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig, LossMode, Merge
from nemo_xtoken.losses.chunk_sums import ChunkSums, agreement, entropy, mass
from nemo_xtoken.losses.divergence import divergence, divergence_on, probability_floor
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.merge import label_log_probability, observed_log_probability, representative_row, run_mean
from nemo_xtoken.losses.partition import Partition, whole_partition
from nemo_xtoken.losses.projected_kl import check_widths, chunk_terms
from nemo_xtoken.losses.vocabulary import Vocabulary, WholeVocabulary, log_softmax
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch, LossTerms


def merged_student_log(
    log_probs: Tensor, labels: Tensor, chunks: ChunkRows, how: Merge, vocabulary: Vocabulary
) -> Tensor:
    """Log of the student's chunk distribution, factor included: [rows, local], [rows] local labels -> [c, local]."""
    if how == "mean":
        mean = run_mean(log_probs.exp(), chunks.student_start, chunks.student_end)
        return mean.clamp_min(probability_floor(log_probs.dtype)).log()
    return _observed(log_probs, labels, chunks.student_start, chunks.student_end, how, vocabulary)


def merged_teacher_log(
    log_probs: Tensor, labels: Tensor, chunks: ChunkRows, how: Merge, vocabulary: Vocabulary
) -> Tensor:
    """Log of the teacher's chunk distribution, factor included: [rows, local], [rows] local labels -> [c, local]."""
    if how == "mean":
        return run_mean(log_probs, chunks.teacher_start, chunks.teacher_end)
    return _observed(log_probs, labels, chunks.teacher_start, chunks.teacher_end, how, vocabulary)


def _observed(
    log_probs: Tensor, labels: Tensor, start: Tensor, end: Tensor, how: Merge, vocabulary: Vocabulary
) -> Tensor:
    label_log_probs = vocabulary.complete(label_log_probability(log_probs, labels))
    observed = observed_log_probability(label_log_probs, start, end, how)
    return log_probs.index_select(0, representative_row(start, end, how)) + observed.unsqueeze(-1)


def common_set_sums(
    student_log: Tensor, teacher_log: Tensor, partition: Partition, config: LossConfig, vocabulary: Vocabulary
) -> ChunkSums:
    """Partial sums of the mode's chunk losses, without the factor temperature²: [c, local] log-probabilities twice."""
    loss = strict_top_k_sum if config.mode == "strict_top_k" else partition_sum
    pairs = (partition.common_student, partition.common_teacher)
    return ChunkSums(
        loss=loss(student_log, teacher_log, partition, config, vocabulary),
        teacher_entropy=entropy(teacher_log),
        top_1_agreement=agreement(teacher_log, student_log.detach(), pairs, vocabulary),
        uncommon_mass=None if config.mode == "uld" else _uncommon_mass(student_log, teacher_log, partition),
    )


@torch.no_grad()
def _uncommon_mass(student_log: Tensor, teacher_log: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    student_rest = student_log.index_select(1, partition.rest_student)
    return mass(student_rest), mass(teacher_log.index_select(1, partition.rest_teacher))


def partition_sum(
    student_log: Tensor, teacher_log: Tensor, partition: Partition, config: LossConfig, vocabulary: Vocabulary
) -> Tensor:
    """Partial sum over chunks of KL on the common pairs plus sorted L1 on the rest: [c, local] twice -> scalar.

    The longer rest is cut to the shorter one and both to `sorted_cap`, largest probabilities first.
    """
    shared = divergence(
        teacher_log.index_select(1, partition.common_teacher),
        student_log.index_select(1, partition.common_student),
        config.direction,
    )
    length = min(partition.rest_length, config.sorted_cap)
    student_rest = vocabulary.largest(student_log.index_select(1, partition.rest_student).exp(), length)
    teacher_rest = vocabulary.largest(teacher_log.index_select(1, partition.rest_teacher).exp(), length)
    return shared.sum() + (student_rest - teacher_rest).abs().sum()


def strict_top_k_sum(
    student_log: Tensor, teacher_log: Tensor, partition: Partition, config: LossConfig, vocabulary: Vocabulary
) -> Tensor:
    """Partial sum over chunks of KL on the common pairs among the teacher's `strict_top_k` tokens of the chunk.

    Both sides are renormalised on these pairs; a chunk without one has no loss. [c, local] twice -> scalar.
    """
    threshold = vocabulary.kth_largest(teacher_log, config.strict_top_k).unsqueeze(-1)
    teacher = teacher_log.index_select(1, partition.common_teacher)
    student = student_log.index_select(1, partition.common_student).exp()
    kept = teacher >= threshold
    some = vocabulary.complete(kept.sum(-1).to(teacher.dtype)) > 0
    values = divergence_on(kept, teacher, student, vocabulary, config.direction)
    return torch.where(some, values, torch.zeros_like(values)).sum()


def _loss(
    mode: LossMode,
    student_logits: Tensor,
    teacher_logits: Tensor,
    batch: DistillBatch,
    matrix: ProjectionMatrix,
    config: LossConfig,
) -> LossTerms:
    check_widths(student_logits, teacher_logits, matrix)
    config = config.with_mode(mode)
    chunks, whole = counted(batch.chunks, config), WholeVocabulary()
    student_log = log_softmax(student_logits[:, : matrix.student_vocab_size], whole, config.temperature)
    teacher_log = log_softmax(teacher_logits[:, : matrix.teacher_vocab_size], whole, config.temperature)
    student_labels, teacher_labels = batch.student_labels.flatten(), batch.teacher_labels.flatten()
    partition = whole_partition(matrix, config, student_logits.device)
    sums = common_set_sums(
        merged_student_log(student_log, student_labels, chunks, config.merge, whole),
        merged_teacher_log(teacher_log, teacher_labels, chunks, config.merge, whole),
        partition,
        config,
        whole,
    )
    return chunk_terms(sums, chunks, config)


def gold(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """GOLD: KL on the exact pairs, both softmaxes over the full vocabulary, plus sorted L1 on all other tokens.

    Its gradient pushes down every uncommon student token (arXiv 2605.21699): dL/dz_j = p_S[j]·sum_{t in C} p_T[t].
    Shapes as in `projected_kl`.
    """
    return _loss("gold", student_logits, teacher_logits, batch, matrix, config)


def hybrid_kl(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """H-KL: GOLD whose common set also holds (s, argmax_t W[s, t]) where that weight reaches `hybrid_threshold`."""
    return _loss("h_kl", student_logits, teacher_logits, batch, matrix, config)


def uld(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """ULD: sorted L1 over the two whole vocabularies, no partition (arXiv 2402.12030). Shapes as in `projected_kl`."""
    return _loss("uld", student_logits, teacher_logits, batch, matrix, config)


def strict_top_k(
    student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix, config: LossConfig
) -> LossTerms:
    """Strict top-k: 1-to-1 chunks only, KL on the exact pairs among the teacher's `strict_top_k` likeliest tokens.

    The denominator counts the 1-to-1 chunks. Shapes as in `projected_kl`.
    """
    return _loss("strict_top_k", student_logits, teacher_logits, batch, matrix, config)
