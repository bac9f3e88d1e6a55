"""The vocabulary when each tensor-parallel rank holds a part of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.losses.vocabulary import Vocabulary, WholeVocabulary, local_largest, local_maximum
from nemo_xtoken.parallel.collectives import exchange_rows, gather_sizes, sum_over_ranks


@dataclass(frozen=True)
class ShardedVocabulary:
    """`losses.vocabulary.Vocabulary` over the ranks of tp_group; shards may be uneven, even empty."""

    tp_group: dist.ProcessGroup

    def complete(self, partial: Tensor) -> Tensor:
        """One all-reduce forward and one backward, of the partial's shape."""
        return sum_over_ranks(partial, self.tp_group)

    def maximum(self, x: Tensor) -> Tensor:
        """[..., local] -> [...], detached, one all-reduce."""
        maximum = local_maximum(x)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.tp_group)
        return maximum

    def largest(self, x: Tensor, count: int) -> Tensor:
        """[c, local] not negative -> [c/tp, count] of this rank's rows.

        Each rank sends its `count` largest of every row to the rank that sorts the row: one all-to-all of [c, count]
        forward and the reverse one backward. Rows are dealt out in rank order, the first ranks taking one more.
        """
        tp_size = self.tp_group.size()
        values = x.topk(min(count, x.shape[-1]), dim=-1).values
        values = torch.nn.functional.pad(values, (0, count - values.shape[-1]), value=-1.0)
        send = _shares(len(x), tp_size)
        mine = send[self.tp_group.rank()]
        received = exchange_rows(values, send, [mine] * tp_size, self.tp_group)
        candidates = received.view(tp_size, mine, count).transpose(0, 1).reshape(mine, tp_size * count)
        return candidates.topk(count, dim=-1).values

    def kth_largest(self, x: Tensor, k: int) -> Tensor:
        """[c, local] -> [c], detached, one all-gather of [tp, c, k]."""
        best = local_largest(x, k)
        gathered = best.new_empty(self.tp_group.size() * len(best), k)
        dist.all_gather_into_tensor(gathered, best, group=self.tp_group)
        candidates = gathered.view(self.tp_group.size(), len(best), k).transpose(0, 1).flatten(1)
        return candidates.topk(k, dim=-1).values[:, -1]


def _shares(rows: int, ranks: int) -> list[int]:
    """Rows of each rank when they are dealt out as evenly as can be."""
    return [rows // ranks + (rank < rows % ranks) for rank in range(ranks)]


def vocabulary_of(tp_group: dist.ProcessGroup | None) -> Vocabulary:
    """The vocabulary of a tensor-parallel group; without one, all columns are here."""
    return WholeVocabulary() if tp_group is None or tp_group.size() == 1 else ShardedVocabulary(tp_group)


@dataclass(frozen=True)
class Widths:
    """Columns of the rank that has most of them, the same number on every rank: student's and teacher's."""

    student: int
    teacher: int = 0


@dataclass(frozen=True)
class RowRange:
    """Rows [start, end) of a head that is sharded contiguously, in tp rank order."""

    start: int
    end: int

    @classmethod
    def of_head(cls, head: Tensor, tp_group: dist.ProcessGroup | None) -> list[RowRange]:
        """Every rank's range, from the shards themselves, so that they need not be even: head [V/tp, h]."""
        ends = np.cumsum(gather_sizes(head.shape[0], tp_group, head.device)).tolist()
        return [cls(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def clip(self, vocab_size: int) -> RowRange:
        """The range without padded ids, those from vocab_size on."""
        return RowRange(min(self.start, vocab_size), min(self.end, vocab_size))

    def local(self, ids: Tensor) -> Tensor:
        """Index of each id within the range, -1 outside of it."""
        return torch.where((ids >= self.start) & (ids < self.end), ids - self.start, -1)

    def __len__(self) -> int:
        return self.end - self.start


def student_ranges(head: Tensor, vocab_size: int, tp_group: dist.ProcessGroup | None) -> list[RowRange]:
    """Every rank's rows of the student's head without padded ids. Raises ConfigError where it has fewer than W."""
    ranges = RowRange.of_head(head, tp_group)
    check_head_rows("student", ranges[-1].end, vocab_size)
    return [rows.clip(vocab_size) for rows in ranges]


def range_of(ranges: Sequence[RowRange], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the range that each id lies in."""
    return np.searchsorted(np.array([rows.end for rows in ranges]), ids, side="right").astype(np.int64)


def check_head_rows(side: str, rows: int, needed: int) -> None:
    """Raises ConfigError where a head has fewer rows than W needs."""
    if rows < needed:
        raise ConfigError(
            f"W was built for {needed} {side} ids but the {side}'s head has {rows} rows: "
            "use the projection of this pair, or raise the model's vocab_size"
        )
