"""What every kind of teacher offers: its final hidden states for a micro batch, and its head.

A source of hidden states is made on every rank, also on pipeline stages without the student's head, so that it may run
a model of another layout than the student's. `head` and `hidden` are asked for only where the student's head is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.parallel import HeadOptions, ShardedPair, cut_head, cut_options
from nemo_xtoken.types import DistillBatch, SparseLogits


class TeacherSettings(Protocol):
    """What the loss has to know of a teacher, whatever framework its model is from."""

    @property
    def name(self) -> str:
        """Among several teachers."""
        ...

    @property
    def weight(self) -> float:
        """Of its part in L_KD."""
        ...

    @property
    def loss(self) -> LossConfig:
        """How the student is compared with it."""
        ...


class TeacherHead(NamedTuple):
    """The rows `pair.teacher_rows` of a teacher's head: weight [owned, h_T], and the bias, scale and cap of these."""

    weight: Tensor
    options: HeadOptions

    def cut(self, pair: ShardedPair, tp_group: dist.ProcessGroup) -> TeacherHead:
        """The rows `pair.teacher_rows`, where this is a rank's shard of a head that is cut over `tp_group`.

        Collectives: those of `parallel.cut_head` and `parallel.cut_options`.
        """
        return TeacherHead(cut_head(self.weight, pair, tp_group), cut_options(self.options, pair, tp_group))


class HiddenFormat(NamedTuple):
    """What hidden states are made of: h_T numbers of a dtype, and where they are wanted."""

    width: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class SampleRange:
    """Samples [first, first + count) of a run's training or validation data, over all data-parallel ranks."""

    dataset: str
    first: int
    count: int


class TeacherSource(Protocol):
    """Where a teacher's hidden states come from. Every rank of the student makes one, calls `begin` once, and
    `prepare` and `close`."""

    def head(self, pair: ShardedPair) -> TeacherHead | None:
        """The part of the head that this rank of the student's tp group owns, cut once, at the start of a run.

        Every rank of the student's last pipeline stage calls it, so it may have collectives among them.
        None where `hidden` gives probabilities.
        """
        ...

    def begin(self, announced: Iterator[SampleRange]) -> None:
        """Learn what the calls of `prepare` will be for, in their order, from where the run begins or goes on."""
        ...

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Announce this data-parallel rank's micro batches of a step, or of a validation, with this teacher's pairs.

        Until the next call, `hidden` is asked for them in this order, for all of them in each pass, and there may be
        several passes: the first step measures the balance of the losses before it trains.
        """
        ...

    def hidden(self, batch: DistillBatch) -> Tensor | SparseLogits:
        """[b*t/cp, h_T] final hidden states, after the last norm, of a micro batch on the student's device.

        Without gradient, the same on every tp rank; of this cp rank's positions, batch first, each sequence's in the
        order of `parallel.context_positions`. A source without a head gives some of its probabilities instead, for all
        rows [b*t] on every cp rank.
        """
        ...

    def close(self) -> None:
        """The run is over, or has failed on this rank."""
        ...


class LearntWeights(Protocol):
    """W that is trained along with the student."""

    def weights(self) -> Tensor:
        """[local rows of W, K], differentiable."""
        ...
