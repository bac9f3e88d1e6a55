"""The distillation loss from hidden states: both heads vocabulary-sharded, logits block by block, nothing gathered."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.parallel.blockwise import BlockwiseLoss
from nemo_xtoken.parallel.checks import check_cut, check_rows
from nemo_xtoken.parallel.context import share_of_rank
from nemo_xtoken.parallel.logits import PLAIN, HeadOptions
from nemo_xtoken.parallel.pair import shard_pair
from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection
from nemo_xtoken.parallel.sparse_teacher import SparseTeacher
from nemo_xtoken.parallel.task import Scale, Task, Teacher
from nemo_xtoken.parallel.vocabulary import RowRange, Widths
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import DistillBatch, LossTerms, SparseLogits


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | SparseLogits | None,
    teacher_head: Tensor | None,
    batch: DistillBatch,
    matrix: ProjectionMatrix | ShardedProjection | ShardedPartition | None,
    config: LossConfig,
    tp_group: dist.ProcessGroup | None = None,
    cp_group: dist.ProcessGroup | None = None,
    *,
    kd_scale: Scale = 1.0,
    ce_scale: Scale = 0.0,
    student_vocab_size: int | None = None,
    weights: Tensor | None = None,
    student_options: HeadOptions = PLAIN,
    teacher_options: HeadOptions = PLAIN,
) -> LossTerms:
    """kd_scale·(sum of chunk losses·temperature²) + ce_scale·(sum of token cross-entropies) of one micro batch.

    student_hidden  [b*s, h_S] after the last norm, the same on every tp rank; gradient complete on every tp rank.
                    With cp_group: this rank's rows [b*s/cp, h_S], each sequence's in the order of `context_positions`
    student_head    [V_S/tp, h_S] shard, contiguous in tp rank order; shards may be uneven; gradient of the shard
    teacher_hidden  [b*t, h_T] ([b*t/cp, h_T]) likewise; None with teacher_head and matrix: cross-entropy alone.
                    SparseLogits, some probabilities of all rows [b*t] and on every rank, need no teacher_head
    batch           the whole micro batch, the same on every rank of tp_group and cp_group
    matrix          W, cut by `shard_pair` for config.mode; or whole, and then cut at every call
    teacher_head    with W cut: its `teacher_rows` [owned, h_T], see `cut_head`;
                    with W whole: [V_T/tp, h_T] shard, contiguous in tp rank order, may be uneven
    student_vocab_size  real ids of the head, by default W's; later rows are padding: no probability, zero gradient
    weights         learnable W, P-KL only: [local rows of W, K] in the place of the cut W's weights, see
                    `ShardedProjection`; differentiable, its gradient complete on this rank but for dp and cp
    student_options, teacher_options  bias, scale and soft cap of the heads; a bias is that of the head's rows, cut by
                    `cut_options` where the teacher's head is cut. The student's bias has a gradient

    Returns LossTerms: numerator differentiable in student_hidden and student_head, denominator the number of counted
    chunks (of counted tokens without a teacher), metrics `ce` over tokens, `kd`, `teacher_entropy` (nats) and
    `top_1_agreement` over chunks, as are `student_uncommon_mass` and `teacher_uncommon_mass` of a mode with a common
    set (see `losses.chunk_sums`), `chunk_tokens` (student tokens in counted chunks) over tokens; the same on every tp
    rank. Over cp every chunk and row counts on one rank. Numerators and denominators are summed over dp and cp, never
    over tp, before they are divided.

    Value and gradient are computed together, as many rows at a time as `config.block_memory_mib` allows (see `memory`),
    then the block's logits are dropped; in modes that project through `kernels`, as `config.implementation` says.
    Accumulation is in float32 (float64 for float64 input). Collectives over tp, each of one number per row or chunk
    unless said: per block the softmax maximum and sum (and the sum's backward) of both sides; for P-KL the projected
    mass (and its backward) and one exchange of projected values with its reverse; for GOLD, H-KL and ULD one exchange
    of [c, sorted_cap] values a side, with the student's reverse; for strict top-k an all-gather of [tp, c, k]; for
    `first` and `last` merges of these the labels' log-probabilities; for `chain` those of `losses.piece_chain`. Per
    call: the values, the hidden gradient [rows, h_S] and, with `teacher_top_k`, an all-gather of [tp, top_k] column
    maxima and an all-to-all of one flag per exchanged column; with W whole also those of `shard_pair` and `cut_head`.
    Over cp: the hidden rows that chunks lack, see `share_of_rank`, and with `teacher_top_k` the column maxima. None
    carries [rows, vocabulary].
    Raises LogitsError for hidden states or heads of a wrong shape; ConfigError for heads or a cut that do not fit W,
    the mode or tp_group, and for sequences that cp can't cut. Values that are not finite make the numerator so.
    """
    _check(teacher_hidden, matrix, *(() if isinstance(teacher_hidden, SparseLogits) else (teacher_head,)))
    tp_group, cp_group = (None if group is None or group.size() == 1 else group for group in (tp_group, cp_group))
    check_rows("student", student_hidden, student_head, batch.student_labels, cp_group)
    check_rows("teacher", teacher_hidden, teacher_head, batch.teacher_labels, cp_group)
    check_cut(matrix, student_head, tp_group)
    if cp_group is not None:
        student_hidden, teacher_hidden, batch = share_of_rank(
            student_hidden, teacher_hidden, batch, cp_group, with_following=config.chain
        )
    teacher: Teacher | SparseTeacher | None = None
    if isinstance(teacher_hidden, SparseLogits) and matrix is not None:
        pair = shard_pair(matrix, config, student_head, tp_group) if isinstance(matrix, ProjectionMatrix) else matrix
        teacher = SparseTeacher(teacher_hidden.to(accumulated(student_hidden[:0]).dtype), pair)
    elif isinstance(teacher_hidden, Tensor) and teacher_head is not None and matrix is not None:
        teacher = Teacher.of(teacher_hidden, teacher_head, matrix, config, student_head, teacher_options, tp_group)
    rows, widths = _student_rows(student_head, teacher, student_vocab_size, tp_group)
    task = Task(batch, teacher, rows, widths, config, tp_group, cp_group, kd_scale, ce_scale, student_options)
    _check_projection(task, matrix, weights)
    numerator, sums = BlockwiseLoss.apply(student_hidden, student_head, student_options.bias, weights, task)  # pyright: ignore
    return task.terms(numerator, sums)


def _student_rows(
    head: Tensor, teacher: Teacher | SparseTeacher | None, vocab_size: int | None, tp_group: dist.ProcessGroup | None
) -> tuple[RowRange, Widths]:
    if teacher is not None:
        rows = teacher.pair.student_rows
        return rows if vocab_size is None else rows.clip(vocab_size), teacher.pair.widths
    ranges = RowRange.of_head(head, tp_group)
    rows = ranges[0 if tp_group is None else tp_group.rank()]
    return rows.clip(vocab_size or ranges[-1].end), Widths(max(len(rows) for rows in ranges))


def _check_projection(task: Task, matrix: object, weights: Tensor | None) -> None:
    chain = task.config.chain
    if task.teacher is not None and (task.chain is not None) != chain:
        raise ConfigError(f"W was cut for another loss than one with chain {chain}: cut it with shard_pair")
    if weights is not None and chain:
        raise ConfigError("loss.chain takes the first piece of each token, which leaves no weights to learn")
    if weights is not None and not isinstance(matrix, ShardedProjection):
        raise ConfigError("learnable weights need W cut by shard_projection, and a loss mode that projects: 'p_kl'")


def _check(*teacher: object) -> None:
    given = [x is not None for x in teacher]
    if any(given) and not all(given):
        raise ConfigError("teacher_hidden, teacher_head and matrix belong together: give all three or none")
