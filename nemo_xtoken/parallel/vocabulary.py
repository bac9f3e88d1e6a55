"""The vocabulary when each tensor-parallel rank holds a part of its columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.losses.vocabulary import Vocabulary, WholeVocabulary, local_maximum
from nemo_xtoken.parallel.collectives import gather_sizes, sum_over_ranks


@dataclass(frozen=True)
class ShardedVocabulary:
    """`losses.vocabulary.Vocabulary` over the ranks of tp_group; shards may be uneven, even empty."""

    tp_group: dist.ProcessGroup

    def total(self, x: Tensor) -> Tensor:
        """[..., local] -> [...], one all-reduce forward and one backward."""
        return sum_over_ranks(x.sum(-1), self.tp_group)

    def maximum(self, x: Tensor) -> Tensor:
        """[..., local] -> [...], detached, one all-reduce."""
        maximum = local_maximum(x)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.tp_group)
        return maximum


def vocabulary_of(tp_group: dist.ProcessGroup | None) -> Vocabulary:
    """The vocabulary of a tensor-parallel group; without one, all columns are here."""
    return WholeVocabulary() if tp_group is None or tp_group.size() == 1 else ShardedVocabulary(tp_group)


@dataclass(frozen=True)
class RowRange:
    """Rows [start, end) of a head that is sharded contiguously, in tp rank order."""

    start: int
    end: int

    @classmethod
    def of_head(cls, head: Tensor, tp_group: dist.ProcessGroup | None) -> list[RowRange]:
        """Every rank's range, from the shards themselves, so that they need not be even: head [V/tp, h]."""
        return row_ranges(gather_sizes(head.shape[0], tp_group, head.device))

    def clip(self, vocab_size: int) -> RowRange:
        """The range without padded ids, those from vocab_size on."""
        return RowRange(min(self.start, vocab_size), min(self.end, vocab_size))

    def local(self, ids: Tensor) -> Tensor:
        """Index of each id within the range, -1 outside of it."""
        return torch.where((ids >= self.start) & (ids < self.end), ids - self.start, -1)

    def __len__(self) -> int:
        return self.end - self.start


def row_ranges(sizes: list[int]) -> list[RowRange]:
    """Consecutive ranges of the given sizes."""
    ranges, start = list[RowRange](), 0
    for size in sizes:
        ranges.append(RowRange(start, start + size))
        start += size
    return ranges
