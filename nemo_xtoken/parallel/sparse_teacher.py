"""A teacher of whom some probabilities are known, where the loss asks for logits block by block."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    selected  [columns] int64, the columns of this rank that the pair is about; None is all of them
    """

    entries: SparseLogits
    pair: ShardedProjection | ShardedPartition
    selected: Tensor | None = None

    @property
    def width(self) -> int:
        """Columns of its logits on this rank."""
        return len(self.pair.teacher_rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of its logits."""
        return self.entries.log_probs.dtype

    def logits(self, rows: Tensor, out: Tensor) -> Tensor:
        """Log-probabilities of the given rows on this rank's columns, in out [rows, width]."""
        ids, entries = self.pair.teacher_rows, self.entries.rows(rows)
        known = entries.ids >= 0
        out.copy_(tail_log_probability(entries).unsqueeze(-1))
        if len(ids):
            ids, order = ids.sort()
            at = torch.searchsorted(ids, entries.ids.clamp_min(0)).clamp_max(len(ids) - 1)
            row, entry = (known & (ids[at] == entries.ids)).nonzero(as_tuple=True)
            out[row, order[at[row, entry]]] = entries.log_probs[row, entry]
        return out

    def on(self, columns: Tensor) -> SparseTeacher:
        """The same on some of this rank's columns, ascending. Collectives: those of `ShardedProjection.on`."""
        assert isinstance(self.pair, ShardedProjection)
        return replace(self, pair=self.pair.on(columns), selected=columns)


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
