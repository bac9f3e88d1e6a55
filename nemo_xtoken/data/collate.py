"""Samples to one micro batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nemo_xtoken.data.sample import AlignedSequence, PackedSequence, Sample
from nemo_xtoken.types import ChunkRows, DistillBatch


def collate(samples: Sequence[Sample]) -> DistillBatch:
    """Stack samples of equal lengths; chunk rows become rows of the flattened [b*s] and [b*t].

    The batch is of the first teacher; those of the others are its `further` ones, with the same student tensors.
    """
    loss_mask = torch.as_tensor(np.stack([sample.loss_mask for sample in samples])).float()
    student = {**_stacked("student", [sample.student for sample in samples]), "student_loss_mask": loss_mask}
    length = len(samples[0].student.tokens)
    of_teachers = list(zip(*(sample.teachers for sample in samples), strict=True)) or [[_NOTHING] * len(samples)]
    first, *further = (
        DistillBatch(
            **student,
            **_stacked("teacher", sequences),
            teacher_places=_places(sequences),
            chunks=_chunks(sequences, length),
        )
        for sequences in of_teachers
    )
    return replace(first, further=tuple(further))


_NO_IDS = np.empty(0, np.int64)
_NOTHING = AlignedSequence(
    tokens=_NO_IDS,
    position_ids=_NO_IDS,
    labels=_NO_IDS,
    places=_NO_IDS,
    chunk_rows=np.empty((0, 4), np.int64),
    chunk_mask=np.empty(0, np.bool_),
)


def _stacked(side: str, sequences: Sequence[PackedSequence]) -> dict[str, Any]:
    names = ("tokens", "position_ids", "labels")
    return {
        f"{side}_{name}": torch.as_tensor(np.stack([getattr(sequence, name) for sequence in sequences]))
        for name in names
    }


def _places(sequences: Sequence[AlignedSequence]) -> torch.Tensor:
    return torch.as_tensor(np.stack([sequence.places for sequence in sequences]))


def _chunks(sequences: Sequence[AlignedSequence], student_length: int) -> ChunkRows:
    shift = np.array([student_length] * 2 + [len(sequences[0].tokens)] * 2)
    rows = np.concatenate([sequence.chunk_rows + i * shift for i, sequence in enumerate(sequences)])
    student_start, student_end, teacher_start, teacher_end = torch.as_tensor(rows.T.copy())
    return ChunkRows(
        student_start=student_start,
        student_end=student_end,
        teacher_start=teacher_start,
        teacher_end=teacher_end,
        mask=torch.as_tensor(np.concatenate([sequence.chunk_mask for sequence in sequences])),
    )
