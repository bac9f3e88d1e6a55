"""P-KL: KL between the teacher's chunk distribution and the student's, projected by W onto the teacher's vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig, Merge
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.chunk_sums import ChunkSums, agreement
from nemo_xtoken.losses.divergence import divergence_and_entropy, renormalised_logs
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.merge import representative_row, run_mean, run_rows
from nemo_xtoken.losses.sparse_projection import Projection, SparseProjection
from nemo_xtoken.losses.vocabulary import Vocabulary, WholeVocabulary, log_softmax
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch, LossTerms, Sum


def merged_student(log_probs: Tensor, chunks: ChunkRows, how: Merge) -> Tensor:
    """Chunk distribution of the student up to a factor, which renormalisation cancels: [rows, V] -> [c, V]."""
    start, end = chunks.student_start, chunks.student_end
    if how == "mean":
        return run_mean(log_probs.exp(), start, end)
    return log_probs.index_select(0, representative_row(start, end, how)).exp()


def merged_teacher(scaled_logits: Tensor, chunks: ChunkRows, how: Merge) -> Tensor:
    """Log of the teacher's chunk distribution up to a constant per chunk: [rows, V] logits / temperature -> [c, V].

    The softmax denominator is such a constant, so it is never computed.
    """
    start, end = chunks.teacher_start, chunks.teacher_end
    if how == "mean":
        return run_mean(scaled_logits, start, end)
    return scaled_logits.index_select(0, representative_row(start, end, how))


def projected_kl_sums(
    student_log_probs: Tensor,
    teacher_logits: Tensor,
    chunks: ChunkRows,
    projection: Projection,
    columns: Tensor | None,
    config: LossConfig,
    vocabulary: Vocabulary,
) -> ChunkSums:
    """Partial sums of the chunks' P-KL over the local teacher columns, without the factor temperature².

    student_log_probs  [student rows, local student columns] at the config's temperature, without padded ids
    teacher_logits     [teacher rows, selected local teacher columns that W reaches]
    chunks             all valid, in rows of these two
    columns            [selected] index of the selected ones among the local teacher columns; None is all of them
    vocabulary         who else holds teacher columns
    """
    student = projection.project(merged_student(student_log_probs, chunks, config.merge))
    if columns is not None:
        student = student.index_select(1, columns)
    teacher_log = merged_teacher(teacher_logits / config.temperature, chunks, config.merge)
    teacher_log, student_log = renormalised_logs(teacher_log, student, vocabulary)
    loss, entropy = divergence_and_entropy(teacher_log, student_log, config.direction)
    return ChunkSums(
        loss=loss,
        teacher_entropy=entropy,
        top_1_agreement=agreement(teacher_log, student_log.detach(), None, vocabulary),
    )


def top_columns(column_maximum: Tensor, top_k: int) -> Tensor:
    """Columns among the top_k largest, ties at the threshold included: [columns] -> ascending indices."""
    if top_k >= len(column_maximum):
        return torch.arange(len(column_maximum), device=column_maximum.device)
    threshold = column_maximum.topk(top_k).values[-1]
    return (column_maximum >= threshold).nonzero().squeeze(-1)


def check_widths(student_logits: Tensor, teacher_logits: Tensor, matrix: ProjectionMatrix) -> None:
    """Raises ConfigError where a head is narrower than the vocabulary that W was built for."""
    for side, width, needed in (
        ("student", student_logits.shape[-1], matrix.student_vocab_size),
        ("teacher", teacher_logits.shape[-1], matrix.teacher_vocab_size or int(matrix.indices.max(initial=-1)) + 1),
    ):
        if width < needed:
            raise ConfigError(
                f"W was built for {needed} {side} ids but the {side}'s logits have {width} columns: "
                "use the projection of this pair, or raise the model's vocab_size"
            )


def check_same_tokenizer(matrix: ProjectionMatrix) -> None:
    """Raises ConfigError unless every token that W maps at all stands for the same id on the other side."""
    filled = ~matrix.empty_rows
    if not (matrix.weights[filled, 0] == 1).all() or (matrix.indices[filled, 0] != filled.nonzero()[0]).any():
        raise ConfigError("loss mode 'same_tokenizer' needs one tokenizer on both sides, W is of two: use 'p_kl'")


def chunk_terms(sums: ChunkSums, chunks: ChunkRows, config: LossConfig) -> LossTerms:
    """The sum over counted chunks times temperature², over their number."""
    numerator = sums.loss * config.temperature**2
    denominator = sums.loss.new_tensor(float(len(chunks.mask)))
    return LossTerms(
        numerator,
        denominator,
        {
            "kd": Sum(numerator.detach(), denominator),
            **{name: Sum(value, denominator) for name, value in sums.metrics().items()},
        },
    )


def projected_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    batch: DistillBatch,
    matrix: ProjectionMatrix,
    config: LossConfig,
    weights: Tensor | None = None,
) -> LossTerms:
    """P-KL of one micro batch: sum over valid chunks of KL(p_T || W^T p_S) on the columns K, times temperature².

    K is the set of teacher columns that W reaches (a column without an entry in W has q = 0 whatever the student does);
    `teacher_top_k` keeps those whose largest logit over the chunks' rows is among the k largest. Both sides are
    renormalised on K. Source: arXiv 2605.21699. Mode "same_tokenizer" is plain KL per position: W must be the identity.

    student_logits  [b*s, V_S], teacher_logits [b*t, V_T], any float dtype; gradient to the student's
    weights         learnable W: [V_S, K] in the place of W's own, differentiable; empty entries stay empty
    Returns LossTerms with the number of valid chunks as denominator.
    """
    check_widths(student_logits, teacher_logits, matrix)
    if config.mode == "same_tokenizer":
        check_same_tokenizer(matrix)
    chunks, whole = counted(batch.chunks, config), WholeVocabulary()
    projection = SparseProjection.from_matrix(matrix, student_logits.device, weights)
    reached = teacher_logits.index_select(1, projection.teacher_columns)
    columns = None
    if config.teacher_top_k is not None and len(chunks.mask):
        rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end)
        columns = top_columns(reached.index_select(0, rows).amax(0), config.teacher_top_k)
        reached = reached.index_select(1, columns)
    log_probs = log_softmax(student_logits[:, : matrix.student_vocab_size], whole, config.temperature)
    sums = projected_kl_sums(log_probs, reached, chunks, projection, columns, config, whole)
    return chunk_terms(sums, chunks, config)
