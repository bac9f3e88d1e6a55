"""One micro batch's loss, block by block: what the student is compared with, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.chunk_sums import METRICS, ChunkSums, metrics_of
from nemo_xtoken.losses.cross_entropy import cross_entropy_per_row
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.vocabulary import log_softmax
from nemo_xtoken.parallel.blocks import Block, RowPlan
from nemo_xtoken.parallel.heads import cut_head
from nemo_xtoken.parallel.logits import PLAIN, HeadOptions, cut_options, logits_of
from nemo_xtoken.parallel.pair import chunk_sums, shard_pair
from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection
from nemo_xtoken.parallel.sparse_teacher import SparseTeacher
from nemo_xtoken.parallel.top_columns import top_columns
from nemo_xtoken.parallel.vocabulary import RowRange, vocabulary_of
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch, LossTerms, Sum

Scale = float | Tensor
SUMS = ("ce", "kd", *METRICS)
"""Sums that blocks add up: cross-entropy over tokens, the others over chunks; 0 for METRICS that the mode lacks."""


@dataclass(frozen=True)
class Teacher:
    """The frozen side: hidden states, this rank's rows of the head, and its part of the pair."""

    hidden: Tensor
    head: Tensor
    pair: ShardedProjection | ShardedPartition
    options: HeadOptions = PLAIN

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        head: Tensor,
        matrix: ProjectionMatrix | ShardedProjection | ShardedPartition,
        config: LossConfig,
        student_head: Tensor,
        options: HeadOptions,
        tp_group: dist.ProcessGroup | None,
    ) -> Teacher:
        """Check a cut W against the mode and the head, or cut W, head and options here. Raises ConfigError."""
        if isinstance(matrix, ProjectionMatrix):
            matrix = shard_pair(matrix, config, student_head, tp_group)
            head, options = cut_head(head, matrix, tp_group), cut_options(options, matrix, tp_group)
            return cls(hidden.detach(), head, matrix, options)
        if isinstance(matrix, ShardedProjection) != (config.mode in ("p_kl", "same_tokenizer")):
            raise ConfigError(f"W was cut for another loss mode than {config.mode!r}: cut it with shard_pair")
        if len(head) != len(matrix.teacher_rows):
            raise ConfigError(
                f"teacher_head has {len(head)} rows, this rank of W owns {len(matrix.teacher_rows)}: "
                "cut the head with cut_head"
            )
        return cls(hidden.detach(), head.detach(), matrix, options)

    def logits(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """Logits of the given rows on this rank's columns, or on those selected: -> [rows, columns]."""
        hidden = self.hidden.index_select(0, rows)
        if columns is None:
            return logits_of(hidden, self.head, self.options)
        return logits_of(hidden, self.head.index_select(0, columns), self.options.of_rows(columns))


@dataclass(frozen=True)
class Task:
    """All that the loss of a micro batch needs besides what it is differentiated in."""

    batch: DistillBatch
    teacher: Teacher | SparseTeacher | None
    rows: RowRange
    config: LossConfig
    tp_group: dist.ProcessGroup | None
    cp_group: dist.ProcessGroup | None
    kd_scale: Scale
    ce_scale: Scale
    student_options: HeadOptions = PLAIN

    def chunks(self) -> ChunkRows:
        """The chunks that count, none without a teacher."""
        chunks = counted(self.batch.chunks, self.config)
        return chunks if self.teacher is not None else chunks.masked(torch.zeros_like(chunks.mask)).valid()

    def teacher_columns(self, plan: RowPlan) -> Tensor | None:
        """The columns of `teacher_top_k` among this rank's, None for all."""
        top_k = self.config.teacher_top_k
        if self.teacher is None or top_k is None or self.config.mode != "p_kl":
            return None
        no_rows = self.teacher.logits(plan.teacher_rows[:0], None)
        maximum = no_rows.new_full(no_rows.shape[1:], -torch.inf)
        for rows in plan.teacher_rows.split(self.config.block_rows):
            if len(rows):
                maximum = torch.maximum(maximum, self.teacher.logits(rows, None).amax(0))
        if self.cp_group is not None:
            dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.cp_group)
        return top_columns(maximum, top_k, self.tp_group)

    def block_values(
        self, logits: Tensor, block: Block, columns: Tensor | None, own_weights: Tensor | None
    ) -> tuple[ChunkSums | None, Tensor]:
        """This rank's partial sums over chunks, None without a teacher, and of the cross-entropies.

        logits [rows, local real ids]; own_weights [entries] of learnable W
        """
        vocabulary, config = vocabulary_of(self.tp_group), self.config
        log_probs = log_softmax(logits, vocabulary)
        labels = self.rows.local(block.labels)
        ce = cross_entropy_per_row(log_probs, labels, block.mask).sum()
        if self.teacher is None:
            return None, ce
        if config.temperature != 1:
            log_probs = log_softmax(logits, vocabulary, config.temperature)
        teacher_logits = self.teacher.logits(block.teacher_rows, columns)
        pair = self.teacher.pair if own_weights is None else replace(self.projection(), weights=own_weights)
        sums = chunk_sums(
            pair, log_probs, labels, teacher_logits, block.teacher_labels, block.chunks, columns, config,
            vocabulary,
        )  # fmt: skip
        return sums, ce

    def projection(self) -> ShardedProjection:
        """This rank's part of W, in a mode that projects."""
        assert self.teacher is not None
        assert isinstance(self.teacher.pair, ShardedProjection)
        return self.teacher.pair

    def terms(self, numerator: Tensor, sums: Tensor) -> LossTerms:
        """The weighted sum and the `SUMS` with what they are divided by."""
        tokens = self.batch.student_loss_mask.sum().to(numerator.dtype)
        ce = sums[0]
        if self.teacher is None:
            return LossTerms(numerator, tokens, {"ce": Sum(ce, tokens)})
        chunks = self.chunks()
        number = numerator.new_tensor(float(len(chunks.mask)))
        in_chunks = (chunks.student_end - chunks.student_start).sum().to(numerator.dtype)
        names = ("kd", *metrics_of(self.config.mode))
        metrics = {name: Sum(sums[SUMS.index(name)], number) for name in names}
        return LossTerms(numerator, number, {"ce": Sum(ce, tokens), **metrics, "chunk_tokens": Sum(in_chunks, tokens)})
