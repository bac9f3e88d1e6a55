"""Sequences made longer for FP8: its products need the tokens of a rank to be a multiple of 16, or of 32.

The rows that are added are a document of their own behind all others, without label, weight, chunk or place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_xtoken.config import ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.fp8_config import Fp8Config
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the sequences of a run's micro batches are made: the student's, and those of each teacher."""

    student: int
    teachers: tuple[int, ...]

    @classmethod
    def needed(
        cls, student: tuple[int, int], teachers: Sequence[tuple[int, int]], sequences: int, parallel: ParallelConfig
    ) -> Lengths:
        """The least ones for micro batches of so many sequences; each model by its own length and token multiple."""
        first, *others = (
            padded_length(length, sequences, parallel, multiple) for length, multiple in (student, *teachers)
        )
        return cls(student=first, teachers=tuple(others))

    def padded(self, batch: DistillBatch) -> DistillBatch:
        """The same text in sequences [b, student] and [b, t] of each pair's teacher, 0 without one."""
        return padded(batch, self.student, self.teachers or (0,))


def token_multiple(fp8: Fp8Config | None) -> int:
    """What the number of tokens that a rank multiplies must be a multiple of: Transformer Engine's kernels ask for it.

    32 for MXFP8, whose blocks of 32 lie along the tokens in the product for the weight's gradient, 16 for the others.
    """
    return 1 if fp8 is None else multiple_of_recipe(fp8.recipe)


def multiple_of_recipe(recipe: str) -> int:
    """The same by the name of a recipe, ours or megatron-core's."""
    return 32 if recipe == "mxfp8" else 16


def padded_length(length: int, sequences: int, parallel: ParallelConfig, multiple: int) -> int:
    """The least length that is not below `length` and can be multiplied and cut, see `length_step`."""
    return rounded_up(length, length_step(sequences, parallel, multiple))


def rounded_up(length: int, step: int) -> int:
    """The least multiple of `step` that is not below `length`."""
    return -(-length // step) * step


def length_step(sequences: int, parallel: ParallelConfig, multiple: int) -> int:
    """Of what the lengths are multiples that have sequences · length / (cp · tp), tp under sequence parallelism, a
    multiple of `multiple`, and that context and sequence parallelism can cut. 1 where there is nothing to pad for."""
    if multiple == 1:
        return 1
    cp_size = parallel.context_parallel_size
    tp_size = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    step = cp_size * tp_size * (multiple // math.gcd(multiple, sequences))
    return math.lcm(step, tp_size if cp_size == 1 else cp_size * math.lcm(2, tp_size))


def padded_for_fp8(batch: DistillBatch, config: RunConfig) -> DistillBatch:
    """A run's micro batch for its student's FP8, and for that of each teacher that runs in the student's layout."""
    sequences = len(batch.student_tokens)

    def longer(length: int, fp8: Fp8Config | None) -> int:
        return padded_length(length, sequences, config.parallel, token_multiple(fp8))

    lengths = [pair.teacher_tokens.shape[1] for pair in batch.pairs]
    for i, teacher in enumerate(config.teachers):
        if shares_layout(teacher):
            lengths[i] = longer(lengths[i], teacher.fp8)
    return padded(batch, longer(batch.student_tokens.shape[1], config.fp8), lengths)


def shares_layout(teacher: TeacherConfig) -> bool:
    """Whether a teacher runs on the student's ranks, cut as the student is."""
    return teacher.kind == "colocated" and teacher.parallel is None


def padded(batch: DistillBatch, student_length: int, teacher_lengths: Sequence[int]) -> DistillBatch:
    """The batch with sequences [b, student_length] and [b, t] of each pair's teacher; chunks are of the same tokens."""
    first, *further = (
        _padded(pair, student_length, length) for pair, length in zip(batch.pairs, teacher_lengths, strict=True)
    )
    return replace(first, further=tuple(further))


def _padded(pair: DistillBatch, student_length: int, teacher_length: int) -> DistillBatch:
    before = pair.student_tokens.shape[1], pair.teacher_tokens.shape[1]
    if before == (student_length, teacher_length):
        return pair
    places = pair.teacher_places
    return DistillBatch(
        student_tokens=_filled(pair.student_tokens, student_length, 0),
        student_position_ids=_continued(pair.student_position_ids, student_length),
        student_labels=_filled(pair.student_labels, student_length, IGNORED_LABEL),
        student_loss_mask=_filled(pair.student_loss_mask, student_length, 0),
        teacher_tokens=_filled(pair.teacher_tokens, teacher_length, 0),
        teacher_position_ids=_continued(pair.teacher_position_ids, teacher_length),
        teacher_labels=_filled(pair.teacher_labels, teacher_length, IGNORED_LABEL),
        teacher_places=None if places is None else _filled(places, teacher_length, -1),
        chunks=_moved(pair.chunks, before, (student_length, teacher_length)),
    )


def _filled(rows: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1]), value=value)


def _continued(position_ids: Tensor, length: int) -> Tensor:
    added = torch.arange(length - position_ids.shape[1], device=position_ids.device)
    return torch.cat([position_ids, added.expand(len(position_ids), -1)], dim=1)


def _moved(chunks: ChunkRows, before: tuple[int, int], after: tuple[int, int]) -> ChunkRows:
    """Chunks in rows of flattened sequences of the lengths `before` in those of `after`."""

    def moved(start: Tensor, side: int) -> Tensor:
        return start + start // max(before[side], 1) * (after[side] - before[side])

    student, teacher = moved(chunks.student_start, 0), moved(chunks.teacher_start, 1)
    return replace(
        chunks,
        student_start=student,
        student_end=student + chunks.student_end - chunks.student_start,
        teacher_start=teacher,
        teacher_end=teacher + chunks.teacher_end - chunks.teacher_start,
    )
