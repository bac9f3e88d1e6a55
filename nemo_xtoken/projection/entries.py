"""Weighted entries of W: gathered from the pieces of tokens, then the heaviest of each row, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.projection.matrix import NO_TOKEN
from nemo_xtoken.projection.pieces import Pieces

Ids = NDArray[np.int64]

NARROW = 32
"""Columns of W that are kept although every row may be shorter; beyond them memory counts."""


@dataclass(frozen=True)
class Entries:
    """Weights at places of a matrix, [entries] each, in the order in which they win a tie; places may come again."""

    rows: Ids
    columns: Ids
    weights: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_]) -> Entries:
        """Only some of the entries. kept [entries] bool."""
        return Entries(self.rows[kept], self.columns[kept], self.weights[kept])

    def then(self, others: Entries) -> Entries:
        """These entries and others after them."""
        return Entries(
            np.concatenate([self.rows, others.rows]),
            np.concatenate([self.columns, others.columns]),
            np.concatenate([self.weights, others.weights]),
        )


def spread(ids: Ids, pieces: Sequence[Pieces], beta: float, gamma: float) -> Entries:
    """Entry (id, tau_i) of weight beta·gamma^i for each id and its pieces tau_0, tau_1, ...; no pieces, no entries."""
    lengths = np.array([len(taus) for taus in pieces], np.int64)
    columns = np.concatenate([*pieces, np.zeros(0, np.int32)]).astype(np.int64)
    position = np.arange(len(columns)) - _run_starts(lengths)
    return Entries(np.repeat(ids, lengths), columns, (beta * gamma**position).astype(np.float64))


def heaviest(entries: Entries, shape: tuple[int, int], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The top_k heaviest entries of each row of a matrix of this shape, those of one place added up, normalised.

    Returns indices [rows, K] int32 and weights [rows, K] float32, heaviest first; K is top_k, above `NARROW` no more
    than the fullest row needs. A row whose weights are all 0 has no entries.
    """
    entries = _summed(entries, shape[1])
    order = np.lexsort((-entries.weights, entries.rows))
    row, column, weight = entries.rows[order], entries.columns[order], entries.weights[order]
    slot = np.arange(len(row)) - _run_starts(np.bincount(row, minlength=shape[0]))
    kept = (slot < top_k) & (weight.astype(np.float32) > 0)
    num_slots = min(top_k, max(NARROW, int(slot.max(initial=0)) + 1))
    indices = np.full((shape[0], num_slots), NO_TOKEN, np.int32)
    weights = np.zeros((shape[0], num_slots), np.float64)
    indices[row[kept], slot[kept]] = column[kept]
    weights[row[kept], slot[kept]] = weight[kept]
    sums = weights.sum(axis=1, keepdims=True)
    return indices, np.divide(weights, sums, out=weights, where=sums > 0).astype(np.float32)


def _summed(entries: Entries, num_columns: int) -> Entries:
    """Each place once, in the order of its first entry."""
    key, first, place = np.unique(entries.rows * num_columns + entries.columns, return_index=True, return_inverse=True)
    weight = np.bincount(place.reshape(-1), entries.weights, minlength=len(key)).astype(np.float64)
    order = np.argsort(first)
    return Entries(key[order] // num_columns, key[order] % num_columns, weight[order])


def _run_starts(lengths: Ids) -> Ids:
    """For runs laid end to end: the start of its run for every element, [sum of lengths]."""
    return np.repeat(lengths.cumsum() - lengths, lengths)
