"""The order in which samples become micro batches: for training without end, for evaluation once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from nemo_xtoken.data.collate import collate
from nemo_xtoken.data.dataset import sample_builder
from nemo_xtoken.data.packing import pack_in_order
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.types import DistillBatch


class Samples(Protocol):
    """An endless stream of samples, each found by its number alone."""

    def sample(self, i: int) -> Sample:
        """Sample i >= 0 of the stream."""
        ...


class GlobalBatches(Iterator[list[DistillBatch]]):
    """Each `next()` is this data-parallel rank's micro batches of the next step.

    Step k holds samples [k, k + 1) x global_batch_size of the dataset, whatever the layout; micro batch m of rank r
    begins at (m x dp_size + r) x micro_batch_size of them. `consumed_samples`, over all ranks, is the whole state.
    """

    def __init__(
        self,
        dataset: Samples,
        micro_batch_size: int,
        global_batch_size: int,
        dp_rank: int,
        dp_size: int,
        consumed_samples: int = 0,
    ) -> None:
        if global_batch_size % (micro_batch_size * dp_size):
            raise ConfigError(
                f"global_batch_size {global_batch_size} is not divisible by "
                f"micro_batch_size x data parallel size = {micro_batch_size} x {dp_size}; change one of them"
            )
        self._dataset = dataset
        self._micro_batch_size = micro_batch_size
        self._global_batch_size = global_batch_size
        self._first = dp_rank * micro_batch_size
        self._stride = dp_size * micro_batch_size
        self.consumed_samples = consumed_samples

    def __next__(self) -> list[DistillBatch]:
        starts = range(self._first, self._global_batch_size, self._stride)
        batches = [self._micro_batch(self.consumed_samples + start) for start in starts]
        self.consumed_samples += self._global_batch_size
        return batches

    def _micro_batch(self, start: int) -> DistillBatch:
        return collate([self._dataset.sample(i) for i in range(start, start + self._micro_batch_size)])


class EvaluationBatch(NamedTuple):
    """A micro batch, and the UTF-8 bytes learnt of the documents that end in it, which its loss per byte is over."""

    batch: DistillBatch
    num_bytes: int


def sequential_batches(
    prepared: PreparedData,
    student_sequence_length: int,
    teacher_sequence_length: int | Sequence[int],
    micro_batch_size: int,
    exact_chunks_only: bool = True,
    teachers: Sequence[int] | None = None,
) -> Iterator[EvaluationBatch]:
    """Every document once, in order, packed; the last batch may be smaller. Arguments as of `PackedDataset`."""
    builder = sample_builder(prepared, student_sequence_length, teacher_sequence_length, exact_chunks_only, teachers)
    pieces = builder.pieces
    packing = pack_in_order(pieces, builder.student_sequence_length, builder.teacher_sequence_lengths)
    ending_bytes = np.where(pieces.ends_document, prepared.loss_bytes[pieces.document], 0)
    for first in range(0, len(packing), micro_batch_size):
        samples = [packing[i] for i in range(first, min(first + micro_batch_size, len(packing)))]
        num_bytes = int(ending_bytes[np.concatenate(samples)].sum())
        yield EvaluationBatch(collate([builder.build(sample) for sample in samples]), num_bytes)
