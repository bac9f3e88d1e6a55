"""The vocabulary in two parts: common tokens, paired one to one, and the rest on either side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.partition import common_set


@dataclass(frozen=True)
class Partition:
    """A partition on the columns that are here.

    common_student, common_teacher  [pairs] int64, local columns of the pairs whose both sides are here
    rest_student, rest_teacher      int64, all other local columns
    rest_length                     tokens of the shorter rest over the whole vocabulary
    """

    common_student: Tensor
    common_teacher: Tensor
    rest_student: Tensor
    rest_teacher: Tensor
    rest_length: int


def common_pairs(matrix: ProjectionMatrix, config: LossConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Student and teacher ids of the common set of a loss mode: exact pairs, for H-KL more, for ULD none."""
    if config.mode == "uld":
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return common_set(matrix, config.hybrid_threshold if config.mode == "h_kl" else 1.0)


def others(size: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """All ids below size that are not in ids, ascending."""
    kept = np.ones(size, np.bool_)
    kept[ids] = False
    return np.flatnonzero(kept)


class _TakeApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
        ctx.shape, ctx.columns = x.shape, columns
        return tuple(x.index_select(1, part) for part in columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = grads[0].new_zeros(ctx.shape)
        for part, grad in zip(ctx.columns, grads, strict=True):
            gradient.index_copy_(1, part, grad)
        return gradient, *(None for _ in ctx.columns)


def take_apart(x: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """x[:, part] for each part; the parts must not overlap. Differentiable, without the sums of index_select's."""
    return _TakeApart.apply(x, *columns)  # pyright: ignore


def whole_partition(matrix: ProjectionMatrix, config: LossConfig, device: torch.device) -> Partition:
    """The partition with all columns in one place."""
    student, teacher = common_pairs(matrix, config)
    rest_student = others(matrix.student_vocab_size, student)
    rest_teacher = others(matrix.teacher_vocab_size, teacher)
    arrays = (student, teacher, rest_student, rest_teacher)
    tensors = (torch.as_tensor(array, device=device) for array in arrays)
    return Partition(*tensors, rest_length=min(len(rest_student), len(rest_teacher)))
