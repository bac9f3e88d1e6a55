"""A teacher of whom some probabilities are known, where the loss asks for logits block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.parallel.partition import ShardedPartition
from nemo_xtoken.parallel.projection import ShardedProjection
from nemo_xtoken.types import SparseLogits

LEAST_LOG = -1e4
"""Stands for the logarithm of 0: its exponential is 0, and no gradient meets inf - inf."""


@dataclass(frozen=True)
class SparseTeacher:
    """Log-probabilities in the place of logits: they are logits whose softmax has nothing left to divide by.

    What a row's entries lack to 1 is spread evenly over the other ids: of a top-k cache the tail, of draws nothing.
    """

    entries: SparseLogits
    pair: ShardedProjection | ShardedPartition

    def logits(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """Log-probabilities of the given rows on this rank's columns, or on those selected: -> [rows, columns]."""
        ids = self.pair.teacher_rows if columns is None else self.pair.teacher_rows.index_select(0, columns)
        entries = self.entries.rows(rows)
        known = entries.ids >= 0
        dense = tail_log_probability(entries)[:, None].expand(-1, len(ids)).clone()
        if not len(ids):
            return dense
        at = torch.searchsorted(ids, entries.ids.clamp_min(0)).clamp_max(len(ids) - 1)
        row, entry = (known & (ids[at] == entries.ids)).nonzero(as_tuple=True)
        dense[row, at[row, entry]] = entries.log_probs[row, entry]
        return dense


def tail_log_probability(entries: SparseLogits) -> Tensor:
    """Log-probability of each id that a row has no entry for, if what the entries lack to 1 is spread evenly: [rows].

    log((1 - sum of the entries) / (vocab_size - number of entries)), not below LEAST_LOG; a rest within the rounding of
    stored numbers counts as nothing.
    """
    known = entries.ids >= 0
    mass = torch.where(known, entries.log_probs.exp(), 0.0).sum(-1)
    others = (entries.vocab_size - known.sum(-1)).clamp_min(1)
    rest = torch.where(mass < 1 - 1e-3, 1 - mass, 0.0)
    return (rest / others).log().clamp_min(LEAST_LOG)
