"""Samples to one micro batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.data.sample import Sample
from nemo_xtoken.types import ChunkRows, DistillBatch


def collate(samples: Sequence[Sample]) -> DistillBatch:
    """Stack samples of equal lengths; chunk rows become rows of the flattened [b*s] and [b*t]."""
    students, teachers = [sample.student for sample in samples], [sample.teacher for sample in samples]
    return DistillBatch(
        student_tokens=_stack([student.tokens for student in students]),
        student_position_ids=_stack([student.position_ids for student in students]),
        student_labels=_stack([student.labels for student in students]),
        student_loss_mask=torch.as_tensor(np.stack([sample.loss_mask for sample in samples])).float(),
        teacher_tokens=_stack([teacher.tokens for teacher in teachers]),
        teacher_position_ids=_stack([teacher.position_ids for teacher in teachers]),
        teacher_labels=_stack([teacher.labels for teacher in teachers]),
        chunks=_chunks(samples),
    )


def _stack(arrays: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.as_tensor(np.stack(arrays))


def _chunks(samples: Sequence[Sample]) -> ChunkRows:
    shift = np.array([len(samples[0].student.tokens)] * 2 + [len(samples[0].teacher.tokens)] * 2)
    rows = np.concatenate([sample.chunk_rows + i * shift for i, sample in enumerate(samples)])
    student_start, student_end, teacher_start, teacher_end = torch.as_tensor(rows.T.copy())
    return ChunkRows(
        student_start=student_start,
        student_end=student_end,
        teacher_start=teacher_start,
        teacher_end=teacher_end,
        mask=torch.as_tensor(np.concatenate([sample.chunk_mask for sample in samples])),
    )
