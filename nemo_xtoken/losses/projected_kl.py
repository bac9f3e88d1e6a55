"""P-KL: KL between the teacher's chunk distribution and the student's, projected by W onto the teacher's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig, Merge
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.blocks import ChunkBlock, most_rows, one_to_one
from nemo_xtoken.losses.blockwise import blockwise_sums
from nemo_xtoken.losses.checks import check_finite, check_shapes
from nemo_xtoken.losses.chunk_sums import ChunkSums, agreement, metrics_of
from nemo_xtoken.losses.divergence import divergence_and_entropy, renormalised_logs
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.fold import Fold
from nemo_xtoken.losses.merge import representative_row, run_mean, run_rows
from nemo_xtoken.losses.piece_chain import PieceChain, chain_sum
from nemo_xtoken.losses.piece_tree import mirrored
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
    return renormalised_sums(student, teacher_log, config, vocabulary)


def renormalised_sums(student: Tensor, teacher_log: Tensor, config: LossConfig, vocabulary: Vocabulary) -> ChunkSums:
    """Partial sums of the chunks' P-KL, from both sides on the local teacher columns. Shapes as `renormalised_logs`."""
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
            **{name: Sum(sums.metrics()[name], denominator) for name in metrics_of(config.mode)},
        },
    )


@dataclass(frozen=True)
class ProjectedComparison:
    """P-KL of chunks on the teacher's columns of a projection. See `losses.blockwise.Comparison`."""

    chunks: ChunkRows
    student_columns: Tensor | None
    projection: SparseProjection
    config: LossConfig
    fold: Fold | None = None

    @property
    def teacher_columns(self) -> Tensor:
        """Those of the projection, and of the tokens that count as one of these."""
        reached = self.projection.teacher_columns
        return reached if self.fold is None else torch.cat([reached, self.fold.ids])

    def sums(
        self, student_logits: Tensor, teacher_logits: Tensor, block: ChunkBlock, weights: Tensor | None
    ) -> ChunkSums:
        """The softmax is over the columns given: all of them, or those that W ties to the teacher's."""
        projection = self.projection if weights is None else replace(self.projection, weights=weights)
        if self.fold is not None:
            teacher_logits = self.fold(teacher_logits, self.config.temperature)
        whole = WholeVocabulary()
        log_probs = log_softmax(student_logits, whole, self.config.temperature)
        return projected_kl_sums(log_probs, teacher_logits, block.chunks, projection, None, self.config, whole)


def projected_comparisons(
    chunks: ChunkRows, projection: SparseProjection, config: LossConfig, fold: Fold | None = None
) -> tuple[ProjectedComparison, ...]:
    """P-KL of chunks, apart where the student's softmax matters from where renormalisation cancels it.

    It cancels where the chunk's distribution is that of one row. There only the student's tokens that a projection on
    few columns ties to these are looked at, and all others have no gradient.
    """
    single, others = one_to_one(chunks) if config.merge == "mean" else (chunks, None)
    columns, tied = (None, projection) if config.teacher_top_k is None else projection.tied()
    comparison = ProjectedComparison(single, columns, tied, replace(config, merge="first") if others else config, fold)
    if others is None:
        return (comparison,)
    return comparison, ProjectedComparison(others, None, projection, config, fold)


def _pieces(matrix: ProjectionMatrix, projection: SparseProjection) -> PieceChain:
    columns = projection.teacher_columns
    return PieceChain.of(matrix, np.arange(matrix.student_vocab_size), columns.cpu().numpy(), device=columns.device)


def _chain(
    student_logits: Tensor,
    teacher_logits: Tensor,
    batch: DistillBatch,
    chunks: ChunkRows,
    chain: PieceChain,
    teacher_columns: Tensor,
    config: LossConfig,
) -> Tensor:
    """The terms behind the first of each chunk. teacher_columns [columns] int64: of W, and of folded tokens."""
    labels, whole = (batch.student_labels.flatten(), batch.teacher_labels.flatten()), WholeVocabulary()
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    loss = student_logits.new_zeros((), dtype=dtype)

    def teacher(rows: Tensor) -> Tensor:
        return teacher_logits.detach().index_select(0, rows).index_select(1, teacher_columns).to(dtype)

    steps = chain.student.steps(chunks, *labels, chain.student.followed(chunks, *labels))
    for part in steps.parts(most_rows(len(teacher_columns), teacher_logits.device)):
        pieces = chain.fold(teacher(part.piece_rows), config.temperature)
        loss = loss + chain_sum(student_logits, pieces, part, chain.student, config, whole, is_students=True)
    steps = chain.teacher.steps(mirrored(chunks), *labels[::-1])
    for part in steps.parts(most_rows(len(teacher_columns) + student_logits.shape[1], student_logits.device)):
        pieces = student_logits.index_select(0, part.piece_rows).to(dtype)
        tokens = teacher(part.token_rows)
        part = replace(part, token_rows=torch.arange(len(tokens), device=tokens.device))
        loss = loss + chain_sum(tokens, pieces, part, chain.teacher, config, whole, is_students=False)
    return loss


def column_maximum(logits: Tensor, rows: Tensor) -> Tensor:
    """Largest logit of each column in the given rows, -inf without any: [rows, V] -> [V]."""
    maximum, step = logits.new_full(logits.shape[1:], -torch.inf), most_rows(logits.shape[1], logits.device)
    for start in range(0, len(rows), step):
        maximum = torch.maximum(maximum, logits.index_select(0, rows[start : start + step]).amax(0))
    return maximum


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
    With `chain` W is the first piece of each token, whatever its weights, and `piece_chain` adds what follows; its
    part holds a second gradient of the logits' size for a while. Raises ConfigError for weights that are learnt then.
    Returns LossTerms with the number of valid chunks as denominator.
    """
    check_shapes(student_logits, teacher_logits, batch, matrix)
    if config.mode == "same_tokenizer":
        check_same_tokenizer(matrix)
    else:
        config = config.with_mode("p_kl")
    chunks = counted(batch.chunks, config)
    if config.chain:
        if weights is not None:
            raise ConfigError("loss.chain takes the first piece of each token, which leaves no weights to learn")
        matrix = matrix.first_pieces()
    projection = SparseProjection.from_matrix(matrix, student_logits.device, weights)
    chain = _pieces(matrix, projection) if config.chain else None
    if config.teacher_top_k is not None and len(chunks.mask):
        rows, _ = run_rows(chunks.teacher_start, chunks.teacher_end)
        maximum = column_maximum(teacher_logits, rows).index_select(0, projection.teacher_columns)
        check_finite(maximum.double().sum(), student_logits, teacher_logits)
        projection = projection.on(top_columns(maximum, config.teacher_top_k))
    comparisons = projected_comparisons(chunks, projection, config, None if chain is None else chain.fold)
    sums = blockwise_sums(
        student_logits,
        teacher_logits,
        comparisons,
        (matrix.student_vocab_size, matrix.teacher_vocab_size),
        config.block_rows,
        None if weights is None else projection.weights,
    )
    if chain is not None:
        real = student_logits[:, : matrix.student_vocab_size]
        columns = comparisons[0].teacher_columns
        further = _chain(real, teacher_logits, batch, chunks, chain, columns, config)
        sums = replace(sums, loss=sums.loss + further)
    check_finite(sums.loss.detach() + sums.teacher_entropy, student_logits, teacher_logits)
    return chunk_terms(sums, chunks, config)
