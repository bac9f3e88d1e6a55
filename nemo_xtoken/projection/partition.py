"""The common set: the pairs of tokens that a loss may compare one to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection.matrix import ProjectionMatrix


def common_set(matrix: ProjectionMatrix, threshold: float = 1.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Student ids and their teacher ids, both [pairs] int64, one to one, ascending by student id.

    At a threshold of 1 the pairs are the exact rows alone (GOLD). Below, a row joins with its heaviest entry if that
    weighs at least the threshold (H-KL). Where several rows want one teacher id, an exact one wins, then the larger
    weight, then the lower student id. Raises ProjectionError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ProjectionError(f"expected a threshold in (0, 1], got {threshold}")
    exact = matrix.exact_rows
    heaviest = matrix.weights.argmax(axis=1)[:, None]
    weight = np.take_along_axis(matrix.weights, heaviest, axis=1)[:, 0]
    joins = exact | (weight >= threshold) if threshold < 1 else exact
    student = np.flatnonzero(joins).astype(np.int64)
    teacher = np.take_along_axis(matrix.indices, heaviest, axis=1)[student, 0].astype(np.int64)
    order = np.lexsort((student, -weight[student], ~exact[student]))
    winners = np.sort(order[np.unique(teacher[order], return_index=True)[1]])
    return student[winners], teacher[winners]
