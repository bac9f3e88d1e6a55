"""One micro batch's loss, a tile of rows at a time: what the student is compared with, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig, Merge
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.kernels import Runs, chunk_probabilities
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.loss_config import PROJECTING
from nemo_xtoken.losses.chunk_sums import METRICS, ChunkSums, metrics_of
from nemo_xtoken.losses.cross_entropy import cross_entropy_per_row
from nemo_xtoken.losses.filters import counted
from nemo_xtoken.losses.merge import representative_row
from nemo_xtoken.losses.piece_chain import PieceChain, chain_sum
from nemo_xtoken.losses.piece_tree import mirrored
from nemo_xtoken.losses.vocabulary import log_softmax
from nemo_xtoken.parallel.blocks import Block
from nemo_xtoken.parallel.heads import cut_head
from nemo_xtoken.parallel.logits import PLAIN, HeadOptions, cut_options, logits_of, logits_of_selected
from nemo_xtoken.parallel.memory import BlockSizes
from nemo_xtoken.parallel.pair import partition_sums, projected_sums, shard_pair
from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection
from nemo_xtoken.parallel.sparse_teacher import SparseTeacher
from nemo_xtoken.parallel.top_columns import top_columns
from nemo_xtoken.parallel.vocabulary import RowRange, Widths, vocabulary_of
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch, LossTerms, Sum

Scale = float | Tensor
SUMS = ("ce", "kd", *METRICS)
"""Sums that tiles add up: cross-entropy over tokens, the others over chunks; 0 for METRICS that the mode lacks."""


@dataclass(frozen=True)
class Teacher:
    """The frozen side: hidden states, this rank's rows of the head, and its part of the pair.

    selected  [columns] int64, the rows of the head that the pair is about; None is all of them
    """

    hidden: Tensor
    head: Tensor
    pair: ShardedProjection | ShardedPartition
    options: HeadOptions = PLAIN
    selected: Tensor | None = None

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
        if isinstance(matrix, ShardedProjection) != (config.mode in PROJECTING):
            raise ConfigError(f"W was cut for another loss mode than {config.mode!r}: cut it with shard_pair")
        if len(head) != len(matrix.teacher_rows):
            raise ConfigError(
                f"teacher_head has {len(head)} rows, this rank of W owns {len(matrix.teacher_rows)}: "
                "cut the head with cut_head"
            )
        return cls(hidden.detach(), head.detach(), matrix, options)

    @property
    def width(self) -> int:
        """Columns of its logits on this rank."""
        return len(self.head) if self.selected is None else len(self.selected)

    @property
    def dtype(self) -> torch.dtype:
        """Of its logits."""
        return accumulated(self.head[:0]).dtype

    def logits(self, rows: Tensor, out: Tensor) -> Tensor:
        """Logits of the given rows on this rank's columns, in out [rows, width]."""
        hidden = self.hidden.index_select(0, rows)
        if self.selected is None:
            return logits_of(hidden, self.head, self.options, out)
        return logits_of_selected(hidden, self.head, self.selected, self.options, out)

    def on(self, columns: Tensor) -> Teacher:
        """The same on some of this rank's columns, ascending. Collectives: those of `ShardedProjection.on`."""
        assert isinstance(self.pair, ShardedProjection)
        return replace(self, pair=self.pair.on(columns), selected=columns)


@dataclass(frozen=True)
class Task:
    """All that the loss of a micro batch needs besides what it is differentiated in.

    rows    this rank's rows of the student's head, without padded ids
    widths  columns of the tp rank that has most
    """

    batch: DistillBatch
    teacher: Teacher | SparseTeacher | None
    rows: RowRange
    widths: Widths
    config: LossConfig
    tp_group: dist.ProcessGroup | None
    cp_group: dist.ProcessGroup | None
    kd_scale: Scale
    ce_scale: Scale
    student_options: HeadOptions = PLAIN

    @property
    def chain(self) -> PieceChain | None:
        """The pieces of both sides' tokens, where the loss goes through them."""
        pair = None if self.teacher is None else self.teacher.pair
        return pair.chain if isinstance(pair, ShardedProjection) else None

    def chunks(self) -> ChunkRows:
        """The chunks that count, none without a teacher."""
        chunks = counted(self.batch.chunks, self.config)
        return chunks if self.teacher is not None else chunks.masked(torch.zeros_like(chunks.mask)).valid()

    def sizes(self, head: Tensor) -> BlockSizes:
        """The rows that fit in the memory of `config` beside a student head of this precision."""
        item_bytes = max(4, head.element_size())
        projects = self.teacher is not None and isinstance(self.teacher.pair, ShardedProjection)
        teacher_width = self.widths.teacher
        if self.teacher is not None and self.teacher.selected is not None:
            teacher_width = min(teacher_width, self.config.teacher_top_k or teacher_width)
        return BlockSizes(
            config=self.config,
            student_width=self.widths.student,
            teacher_width=teacher_width,
            item_bytes=item_bytes,
            low_bytes=head.element_size() if head.element_size() < item_bytes else 0,
            student_tile=(5 if self.chain is None else 11) if projects else 12,
            teacher_tile=12 if self.chain is None else 13,
        )

    def on_top_columns(self, rows: Tensor, sizes: BlockSizes) -> Task:
        """The same on the columns of `teacher_top_k`: rows [m] are the teacher's in counted chunks.

        Each column's largest logit needs one product of the whole head; the columns kept are computed again later.
        """
        teacher, top_k = self.teacher, self.config.teacher_top_k
        if teacher is None or top_k is None or self.config.mode != "p_kl":
            return self
        maximum = torch.full((teacher.width,), -torch.inf, dtype=teacher.dtype, device=rows.device)
        step = sizes.rows_of(max(1, self.widths.teacher))
        logits = maximum.new_empty(min(step, len(rows)), teacher.width)
        for part in rows.split(step) if len(rows) else ():
            maximum = torch.maximum(maximum, teacher.logits(part, logits[: len(part)]).amax(0))
        if self.cp_group is not None:
            dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.cp_group)
        return replace(self, teacher=teacher.on(top_columns(maximum, top_k, self.tp_group)))

    def values(
        self, logits: Tensor, teacher_logits: Tensor | None, tile: Block, own_weights: Tensor | None
    ) -> tuple[ChunkSums | None, Tensor]:
        """This rank's partial sums over a tile's chunks, None without a teacher, and of its cross-entropies.

        logits [rows, local real ids]; teacher_logits [teacher rows, columns]; own_weights [entries] of learnable W
        """
        labels = self.rows.local(tile.labels)
        if self.teacher is None or teacher_logits is None:
            return None, self._cross_entropy(logits, labels, tile)
        if isinstance(self.teacher.pair, ShardedProjection):
            return self._projected(logits, teacher_logits, labels, tile, own_weights)
        vocabulary, config = vocabulary_of(self.tp_group), self.config
        log_probs = log_softmax(logits, vocabulary)
        ce = cross_entropy_per_row(log_probs, labels, tile.mask).sum()
        if config.temperature != 1:
            log_probs = log_softmax(logits, vocabulary, config.temperature)
        sums = partition_sums(
            log_probs, labels, teacher_logits, tile.teacher_labels, tile.chunks, self.teacher.pair, config, vocabulary
        )
        return sums, ce

    def _projected(
        self, logits: Tensor, teacher_logits: Tensor, labels: Tensor, tile: Block, own_weights: Tensor | None
    ) -> tuple[ChunkSums, Tensor]:
        pair, config, vocabulary = self.projection(), self.config, vocabulary_of(self.tp_group)
        student_runs, teacher_runs = runs_of(tile, config.merge)
        label_log, means = chunk_probabilities(
            logits, labels, student_runs, vocabulary, columns=pair.student_columns, temperature=config.temperature,
            implementation=config.implementation,
        )  # fmt: skip
        ce = -(label_log * tile.mask.to(label_log.dtype)).sum()
        if config.temperature != 1:
            ce = self._cross_entropy(logits, labels, tile)
        if own_weights is not None:
            pair = replace(pair, weights=own_weights)
        if pair.chain is None:
            return projected_sums(means, teacher_logits, teacher_runs, pair, config, vocabulary), ce
        folded = pair.chain.fold(teacher_logits, config.temperature)
        sums = projected_sums(means, folded, teacher_runs, pair, config, vocabulary)
        return replace(sums, loss=sums.loss + self._chain(logits, teacher_logits, folded, tile, pair.chain)), ce

    def _chain(self, logits: Tensor, teacher_logits: Tensor, folded: Tensor, tile: Block, chain: PieceChain) -> Tensor:
        config, vocabulary = self.config, vocabulary_of(self.tp_group)
        steps = chain.student.steps(tile.chunks, tile.labels, tile.teacher_labels, tile.followed)
        rows = folded.index_select(0, steps.piece_rows)
        students = chain_sum(logits, rows, steps, chain.student, config, vocabulary, is_students=True)
        steps = chain.teacher.steps(mirrored(tile.chunks), tile.teacher_labels, tile.labels)
        rows = logits.index_select(0, steps.piece_rows)
        return students + chain_sum(teacher_logits, rows, steps, chain.teacher, config, vocabulary, is_students=False)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, tile: Block) -> Tensor:
        none = Runs(labels[:0], labels[:0])
        label_log, _ = chunk_probabilities(
            logits, labels, none, vocabulary_of(self.tp_group), columns=labels[:0],
            implementation=self.config.implementation,
        )  # fmt: skip
        return -(label_log * tile.mask.to(label_log.dtype)).sum()

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


def runs_of(tile: Block, how: Merge) -> tuple[Runs, Runs]:
    """The student and the teacher rows of each chunk whose mean is its distribution up to a factor."""
    chunks = tile.chunks
    student, teacher = (chunks.student_start, chunks.student_end), (chunks.teacher_start, chunks.teacher_end)
    every_student, every_teacher = tile.spans.every_row_is_a_chunk(len(tile.student_rows))
    if how != "mean":
        student_row, teacher_row = representative_row(*student, how), representative_row(*teacher, how)
        student, teacher = (student_row, student_row + 1), (teacher_row, teacher_row + 1)
    return Runs(*student, every_student), Runs(*teacher, every_teacher)
