"""Sequences that are made longer for FP8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_xtoken.config import Fp8Config, ParallelConfig
from nemo_xtoken.data.padding import Lengths, padded, padded_length, token_multiple
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch

ONE = ParallelConfig()
TP2 = ParallelConfig(tensor_model_parallel_size=2)
SP2 = replace(TP2, sequence_parallel=True)
CP2 = ParallelConfig(context_parallel_size=2)


def batch() -> DistillBatch:
    """Two sequences of 5 and 7 tokens; the second has a chunk at its very end."""
    student, teacher = torch.arange(10).view(2, 5) + 1, torch.arange(14).view(2, 7) + 1
    starts = torch.tensor([0, 6]), torch.tensor([1, 12])
    chunks = ChunkRows(
        student_start=starts[0],
        student_end=torch.tensor([5, 10]),
        teacher_start=starts[1],
        teacher_end=torch.tensor([3, 14]),
        mask=torch.tensor([True, True]),
    )
    return DistillBatch(
        student_tokens=student,
        student_position_ids=torch.arange(5).expand(2, -1),
        student_labels=student + 1,
        student_loss_mask=torch.ones(2, 5),
        teacher_tokens=teacher,
        teacher_position_ids=torch.arange(7).expand(2, -1),
        teacher_labels=teacher + 1,
        teacher_places=teacher,
        chunks=chunks,
    )


@pytest.mark.parametrize(
    ("sequences", "parallel", "multiple", "expected"),
    [
        (1, ONE, 1, 24),
        (1, ONE, 16, 32),
        (2, ONE, 16, 24),
        (3, ONE, 32, 32),
        (1, TP2, 16, 32),
        (1, SP2, 32, 64),
        (1, CP2, 16, 32),
        (1, replace(SP2, context_parallel_size=2), 16, 64),
    ],
)
def test_the_tokens_of_a_rank_are_a_multiple(
    sequences: int, parallel: ParallelConfig, multiple: int, expected: int
) -> None:
    length = padded_length(24, sequences, parallel, multiple)
    assert length == expected
    ranks = parallel.context_parallel_size * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    assert sequences * length // ranks % multiple == 0


def test_each_recipe_needs_its_own_multiple() -> None:
    assert token_multiple(None) == 1
    assert [token_multiple(Fp8Config(recipe=name)) for name in ("delayed", "current", "blockwise")] == [16] * 3
    assert token_multiple(Fp8Config(recipe="mxfp8")) == 32


def test_padding_has_no_part_in_any_loss_and_chunks_keep_their_tokens() -> None:
    before = batch()
    after = padded(replace(before, further=(before,)), 8, (7, 16)).pairs
    for pair, length in zip(after, (7, 16), strict=True):
        assert pair.student_tokens.shape == (2, 8)
        assert pair.teacher_tokens.shape == pair.teacher_labels.shape == (2, length)
        assert torch.equal(pair.student_tokens[:, :5], before.student_tokens)
        assert bool((pair.student_labels[:, 5:] == IGNORED_LABEL).all())
        assert bool((pair.teacher_labels[:, 7:] == IGNORED_LABEL).all())
        assert pair.student_loss_mask.sum() == before.student_loss_mask.sum()
        assert pair.teacher_places is not None
        assert bool((pair.teacher_places[:, 7:] == -1).all())
        assert pair.student_position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]  # a document of its own
        for side in ("student", "teacher"):
            assert tokens_of_chunks(pair, side) == tokens_of_chunks(before, side)


def tokens_of_chunks(batch: DistillBatch, side: str) -> list[list[int]]:
    tokens = getattr(batch, f"{side}_tokens").flatten()
    starts, ends = getattr(batch.chunks, f"{side}_start"), getattr(batch.chunks, f"{side}_end")
    return [tokens[start:end].tolist() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def test_nothing_is_done_where_the_lengths_are_right_already() -> None:
    before = batch()
    assert padded(before, 5, (7,)).student_tokens is before.student_tokens


def test_a_student_without_a_teacher_is_padded_as_well() -> None:
    whole = batch()
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    no_chunks = ChunkRows(**dict.fromkeys(vars(whole.chunks), nothing[0]))
    alone = replace(
        whole,
        teacher_tokens=nothing,
        teacher_position_ids=nothing,
        teacher_labels=nothing,
        teacher_places=nothing,
        chunks=no_chunks,
    )
    longer = Lengths(student=8, teachers=()).padded(alone)
    assert longer.student_tokens[:, :5].equal(alone.student_tokens)
    assert longer.student_tokens.shape == (2, 8)
    assert longer.teacher_tokens.shape == (2, 0)
