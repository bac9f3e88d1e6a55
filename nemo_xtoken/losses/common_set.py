"""Losses on a partition into common and uncommon tokens: GOLD, H-KL, strict top-k and, without a common part, ULD.

All see the two chunk distributions over the full vocabularies, [c, V_S] and [c, V_T].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig, LossMode, Merge
from nemo_xtoken.losses.blocks import ChunkBlock, one_to_one
from nemo_xtoken.losses.blockwise import blockwise_sums
from nemo_xtoken.losses.checks import check_finite, check_shapes
from nemo_xtoken.losses.chunk_sums import ChunkSums, entropy, mass, pair_agreement
from nemo_xtoken.losses.divergence import divergence_and_entropy, divergence_on, inner, probability_floor
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.merge import label_log_probability, observed_log_probability, representative_row, run_mean
from nemo_xtoken.losses.partition import Partition, take_apart, whole_partition
from nemo_xtoken.losses.projected_kl import chunk_terms
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
    student = Parts(*take_apart(student_log, partition.common_student, partition.rest_student))
    teacher = Parts(*take_apart(teacher_log, partition.common_teacher, partition.rest_teacher))
    best = vocabulary.maximum(teacher_log), vocabulary.maximum(student_log)
    top_1_agreement = pair_agreement(teacher.common, student.common, *best)
    if config.mode == "strict_top_k":
        threshold = vocabulary.kth_largest(teacher_log, config.strict_top_k)
        loss = strict_top_k_sum(student.common, teacher.common, threshold, config, vocabulary)
        return ChunkSums(loss, entropy(teacher_log), top_1_agreement, (mass(student.rest), mass(teacher.rest)))
    loss, teacher_entropy, masses = partition_sums(student, teacher, partition.rest_length, config, vocabulary)
    return ChunkSums(loss, teacher_entropy, top_1_agreement, None if config.mode == "uld" else masses)


class Parts(NamedTuple):
    """Log-probabilities of one side: common [c, pairs] in the order of the pairs, rest [c, other local columns]."""

    common: Tensor
    rest: Tensor


def partition_sums(
    student: Parts, teacher: Parts, rest_length: int, config: LossConfig, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Partial sums over chunks of KL on the common pairs plus sorted L1 on the rest, and of metrics: see `ChunkSums`.

    These are the teacher's entropy and both sides' mass on the rest, the student's first. The longer rest is cut to
    the shorter one, `rest_length` over the whole vocabulary, and both to `sorted_cap`, largest probabilities first.
    """
    shared, shared_entropy = divergence_and_entropy(teacher.common, student.common, config.direction)
    length = min(rest_length, config.sorted_cap)
    student_rest, teacher_rest = student.rest.exp(), teacher.rest.exp()
    largest = vocabulary.largest(student_rest, length), vocabulary.largest(teacher_rest, length)
    rest = torch.nn.functional.l1_loss(*largest, reduction="sum")
    masses = student_rest.detach().sum(), teacher_rest.detach().sum()
    return shared + rest, shared_entropy - inner(teacher_rest, teacher.rest).detach(), masses


def strict_top_k_sum(
    student_common: Tensor, teacher_common: Tensor, threshold: Tensor, config: LossConfig, vocabulary: Vocabulary
) -> Tensor:
    """Partial sum over chunks of KL on the common pairs whose teacher's log-probability reaches the threshold [c].

    Both sides are renormalised on these pairs; a chunk without one has no loss. [c, pairs] twice -> scalar.
    """
    kept = teacher_common >= threshold.unsqueeze(-1)
    some = vocabulary.complete(kept.sum(-1).to(teacher_common.dtype)) > 0
    values = divergence_on(kept, teacher_common, student_common.exp(), vocabulary, config.direction)
    return torch.where(some, values, torch.zeros_like(values)).sum()


@dataclass(frozen=True)
class PartitionComparison:
    """Chunks on the two whole vocabularies, in parts. See `losses.blockwise.Comparison`.

    student_labels, teacher_labels  of all rows
    merge    how the rows of a chunk become its distribution; None where each chunk has one row a side
    """

    chunks: ChunkRows
    student_labels: Tensor
    teacher_labels: Tensor
    partition: Partition
    config: LossConfig
    merge: Merge | None
    student_columns: Tensor | None = None
    teacher_columns: Tensor | None = None

    def sums(
        self, student_logits: Tensor, teacher_logits: Tensor, block: ChunkBlock, weights: Tensor | None
    ) -> ChunkSums:
        """The softmaxes are over the whole vocabularies; a partition has no weights."""
        whole, chunks = WholeVocabulary(), block.chunks
        student = log_softmax(student_logits, whole, self.config.temperature)
        teacher = log_softmax(teacher_logits, whole, self.config.temperature)
        if self.merge is not None:
            student_labels = self.student_labels[block.student_rows]
            teacher_labels = self.teacher_labels[block.teacher_rows]
            student = merged_student_log(student, student_labels, chunks, self.merge, whole)
            teacher = merged_teacher_log(teacher, teacher_labels, chunks, self.merge, whole)
        return common_set_sums(student, teacher, self.partition, self.config, whole)


def _loss(
    mode: LossMode,
    student_logits: Tensor,
    teacher_logits: Tensor,
    batch: DistillBatch,
    matrix: ProjectionMatrix,
    config: LossConfig,
) -> LossTerms:
    check_shapes(student_logits, teacher_logits, batch, matrix)
    config = config.with_mode(mode)
    chunks = counted(batch.chunks, config)
    single, others = one_to_one(chunks)
    comparison = PartitionComparison(
        chunks=single,
        student_labels=batch.student_labels.flatten(),
        teacher_labels=batch.teacher_labels.flatten(),
        partition=whole_partition(matrix, config, student_logits.device),
        config=config,
        merge=None,
    )
    comparisons = (comparison, replace(comparison, chunks=others, merge=config.merge))
    sizes = (matrix.student_vocab_size, matrix.teacher_vocab_size)
    sums = blockwise_sums(student_logits, teacher_logits, comparisons, sizes, config.block_rows)
    check_finite(sums.loss.detach() + sums.teacher_entropy, student_logits, teacher_logits)
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
