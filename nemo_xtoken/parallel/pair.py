"""What a loss mode needs of a tokenizer pair whose vocabularies are sharded, and the mode's loss on such shards."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.kernels import Runs, mean_logits
from nemo_xtoken.loss_config import PROJECTING
from nemo_xtoken.losses.chunk_sums import ChunkSums
from nemo_xtoken.losses.common_set import common_set_sums, merged_student_log, merged_teacher_log
from nemo_xtoken.losses.projected_kl import check_same_tokenizer, renormalised_sums
from nemo_xtoken.losses.vocabulary import Vocabulary, log_softmax
from nemo_xtoken.parallel.partition import ShardedPartition, shard_partition
from nemo_xtoken.parallel.projection import ShardedProjection, shard_chain, shard_projection
from nemo_xtoken.parallel.vocabulary import RowRange, Widths
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows


class ShardedPair(Protocol):
    """One tp rank's part of a pair.

    student_rows  the rank's rows of the student's head, without padded ids
    teacher_rows  [owned] int64, ascending teacher ids: the rows that its teacher head must have
    """

    @property
    def student_rows(self) -> RowRange:
        """Rows of the student's head."""
        ...

    @property
    def teacher_rows(self) -> Tensor:
        """Rows of the teacher's head."""
        ...

    @property
    def tp_size(self) -> int:
        """Ranks that it is cut for."""
        ...

    @property
    def widths(self) -> Widths:
        """Columns of the rank that has most."""
        ...


def shard_pair(
    matrix: ProjectionMatrix, config: LossConfig, student_head: Tensor, tp_group: dist.ProcessGroup | None = None
) -> ShardedProjection | ShardedPartition:
    """Cut W for this rank as the loss mode needs it: student_head is its shard [V_S/tp, h], contiguous, maybe uneven.

    Collectives: one all-gather of a size; done once, at the start of a run. Raises ConfigError where the head has fewer
    rows than W, and where the mode is for one tokenizer and W is of two; ProjectionError where `chain` needs pieces
    that W's file does not have.
    """
    if config.mode == "same_tokenizer":
        check_same_tokenizer(matrix)
    if config.chain:
        return shard_chain(matrix, student_head, tp_group)
    if config.mode in PROJECTING:
        return shard_projection(matrix, student_head, tp_group)
    return shard_partition(matrix, config, student_head, tp_group)


def projected_sums(
    means: Tensor,
    teacher_logits: Tensor,
    teacher_runs: Runs,
    pair: ShardedProjection,
    config: LossConfig,
    vocabulary: Vocabulary,
) -> ChunkSums:
    """This rank's partial sums of P-KL over chunks, without the factor temperature².

    means           [c, local or tied] the student's probabilities of each chunk, up to a factor
    teacher_logits  [teacher rows, owned]; teacher_runs: the rows of each chunk whose mean counts
    """  # fmt: skip
    if teacher_runs.is_every_row:
        teacher_log = teacher_logits if config.temperature == 1 else teacher_logits / config.temperature
    else:
        teacher_log = mean_logits(
            teacher_logits, teacher_runs.start, teacher_runs.end, config.temperature,
            implementation=config.implementation,
        )  # fmt: skip
    return renormalised_sums(pair.project(means, config.implementation), teacher_log, config, vocabulary)


def partition_sums(
    student_log: Tensor,
    student_labels: Tensor,
    teacher_logits: Tensor,
    teacher_labels: Tensor,
    chunks: ChunkRows,
    pair: ShardedPartition,
    config: LossConfig,
    vocabulary: Vocabulary,
) -> ChunkSums:
    """This rank's partial sums over chunks of a loss on a partition, without the factor temperature².

    student_log     [rows, local] log-probabilities at the config's temperature; student_labels [rows] in local columns
    teacher_logits  [teacher rows, owned]; teacher_labels [teacher rows] ids
    """  # fmt: skip
    teacher_log = log_softmax(teacher_logits, vocabulary, config.temperature)
    student = merged_student_log(student_log, student_labels, chunks, config.merge, vocabulary)
    local_labels = _local(teacher_labels, pair.teacher_rows)
    teacher = merged_teacher_log(teacher_log, local_labels, chunks, config.merge, vocabulary)
    return common_set_sums(student, teacher, pair.partition, config, vocabulary)


def _local(ids: Tensor, owned: Tensor) -> Tensor:
    """Index of each id in the ascending `owned`, -1 where it is not one of them."""
    if len(owned) == 0:
        return torch.full_like(ids, -1)
    at = torch.searchsorted(owned, ids.contiguous()).clamp_max(len(owned) - 1)
    return torch.where(owned[at] == ids, at, -1)
