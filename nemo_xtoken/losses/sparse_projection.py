"""W as the losses use it: entries of a sparse matrix, and the teacher columns that it reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.projection.matrix import ProjectionMatrix


class Projection(Protocol):
    """q = W^T p on the columns that are here."""

    def project(self, student: Tensor) -> Tensor:
        """[c, local student columns] -> [c, local teacher columns], differentiable."""
        ...


def scatter_columns(x: Tensor, rows: Tensor, columns: Tensor, weights: Tensor, num_columns: int) -> Tensor:
    """y[:, columns[e]] += weights[e]·x[:, rows[e]] over all entries e: [c, in] -> [c, num_columns]."""
    y = x.new_zeros(x.shape[0], num_columns)
    return y.scatter_add(1, columns.expand(x.shape[0], -1), x.index_select(1, rows) * weights.to(x.dtype))


@dataclass(frozen=True)
class SparseProjection:
    """W in coordinate form over the teacher columns that it reaches.

    teacher_columns  [reached] int64, ascending teacher ids with at least one entry
    rows, columns    [entries] int64, student id and index into teacher_columns
    weights          [entries] float32
    """

    teacher_columns: Tensor
    rows: Tensor
    columns: Tensor
    weights: Tensor

    @classmethod
    def from_matrix(
        cls, matrix: ProjectionMatrix, device: torch.device | str = "cpu", weights: Tensor | None = None
    ) -> SparseProjection:
        """The same W from its padded rows; weights [V_S, K], which may need a gradient, in the place of its own."""
        rows, slots = np.nonzero(matrix.indices >= 0)
        ids = matrix.indices[rows, slots]
        reached = np.zeros(matrix.teacher_vocab_size, np.bool_)
        reached[ids] = True
        columns = (np.cumsum(reached) - 1)[ids]
        if weights is None:
            weights = torch.as_tensor(matrix.weights, device=device)
        return cls(
            teacher_columns=torch.as_tensor(np.flatnonzero(reached), device=device),
            rows=torch.as_tensor(rows, device=device),
            columns=torch.as_tensor(columns, device=device),
            weights=weights[rows, slots],
        )

    def on(self, columns: Tensor) -> SparseProjection:
        """W on some of its teacher columns: columns [selected] int64, ascending indices into teacher_columns."""
        place = torch.full_like(self.teacher_columns, -1)
        place[columns] = torch.arange(len(columns), device=columns.device)
        kept = (place[self.columns] >= 0).nonzero().squeeze(-1)
        return SparseProjection(
            self.teacher_columns[columns], self.rows[kept], place[self.columns[kept]], self.weights[kept]
        )

    def tied(self) -> tuple[Tensor, SparseProjection]:
        """The student ids with an entry, [tied] ascending, and W on them alone: its `project` is [c, tied] -> ..."""
        present = torch.bincount(self.rows) > 0
        return present.nonzero().squeeze(-1), replace(self, rows=(present.cumsum(0) - 1)[self.rows])

    def project(self, student: Tensor) -> Tensor:
        """q = W^T p: [c, V_S] -> [c, reached]; rows of W sum to 1, so mass is kept but for empty rows of W."""
        return scatter_columns(student, self.rows, self.columns, self.weights, len(self.teacher_columns))
