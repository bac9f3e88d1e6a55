"""Co-located placement: which tp rank owns which teacher column, and what has to cross for it, from W alone.

A column lies with the student row that it exactly matches, so an exact match never crosses a rank. Any other column
lies with one of the student rows that project onto it, which makes the sum of what crosses as small as it can be; among
their ranks it goes to the one with the fewest columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.projection.matrix import ProjectionMatrix

Ids = NDArray[np.int64]


def place_columns(teacher: Ids, student_owner: Ids, is_exact: NDArray[np.bool_], tp_size: int) -> tuple[Ids, Ids]:
    """Teacher ids that W reaches, ascending, and the rank of each.

    teacher, student_owner, is_exact  [entries] teacher id, rank of the student row, whether the two are an exact pair
    """
    reached, column = np.unique(teacher, return_inverse=True)
    owner = np.full(len(reached), -1)
    owner[column[is_exact]] = student_owner[is_exact]
    held = np.bincount(owner[owner >= 0], minlength=tp_size)
    open_entries = owner[column] < 0
    pairs = np.unique(np.stack([column[open_entries], student_owner[open_entries]]), axis=1)
    columns, first = np.unique(pairs[0], return_index=True)
    for at, ranks in zip(columns, np.split(pairs[1], first[1:]), strict=True) if len(columns) else ():
        rank = ranks[held[ranks].argmin()]
        owner[at] = rank
        held[rank] += 1
    return reached, owner


def unique_pairs(rank: Ids, teacher: Ids, kept: NDArray[np.bool_]) -> Ids:
    """The different (rank, teacher id) pairs, [2, pairs], by rank and then by id."""
    return np.unique(np.stack([rank[kept], teacher[kept]]), axis=1)


def exchanged_values(matrix: ProjectionMatrix, tp_size: int, padded_vocab_size: int | None = None) -> list[int]:
    """Values per chunk that each rank sends in P-KL's forward, and receives in its backward: [tp_size].

    padded_vocab_size  rows of the student's head, cut into tp_size equal shards; by default W's rows, rounded up
    """
    size = padded_vocab_size or -(-matrix.student_vocab_size // tp_size) * tp_size
    rows, slots = np.nonzero(matrix.indices >= 0)
    teacher = matrix.indices[rows, slots].astype(np.int64)
    student_owner = rows // (size // tp_size)
    reached, owner = place_columns(teacher, student_owner, matrix.exact_rows[rows], tp_size)
    crosses = owner[np.searchsorted(reached, teacher)] != student_owner
    sent = unique_pairs(student_owner, teacher, crosses)
    return np.bincount(sent[0], minlength=tp_size).tolist()


def values_per_row(matrix: ProjectionMatrix, tp_size: int, padded_vocab_size: int | None = None) -> float:
    """What a rank sends per chunk in P-KL's forward, all teacher columns, in the mean over ranks."""
    return sum(exchanged_values(matrix, tp_size, padded_vocab_size)) / tp_size
