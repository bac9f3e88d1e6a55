"""Packed samples of prepared data, epoch after epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from nemo_xtoken.data.packing import Packing, fill, pack
from nemo_xtoken.data.pieces import cut_pieces
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.sample import Sample, SampleBuilder


class PackedDataset:
    """An endless stream of samples: every epoch holds every piece once, packed anew from (seed, epoch).

    teacher_sequence_length  of every teacher of the data, or one for each, in their order: pieces fit into all of them
    teachers                 the numbers of the teachers whose sequences samples have, in this order; None: all
    part                     the number of this data among all that a run reads, for the places of tokens
    pieces                   what the documents were cut into, with the count of chunks that fit no sequence
    So data of several teachers is packed alike for whichever of them a run has. Raises DataError where nothing fits.
    """

    def __init__(
        self,
        prepared: PreparedData,
        student_sequence_length: int,
        teacher_sequence_length: int | Sequence[int],
        seed: int,
        exact_chunks_only: bool = True,
        teachers: Sequence[int] | None = None,
        part: int = 0,
    ) -> None:
        self._builder = sample_builder(
            prepared, student_sequence_length, teacher_sequence_length, exact_chunks_only, teachers, part
        )
        self.pieces = self._builder.pieces
        self._seed = seed
        self._first_samples = [0]
        self._packings: dict[int, Packing] = {}

    def sample(self, i: int) -> Sample:
        """Sample i >= 0 of the stream."""
        epoch = self._epoch_of(i)
        return self._builder.build(self._packing(epoch)[i - self._first_samples[epoch]])

    def epoch_samples(self, epoch: int) -> int:
        """Samples of one epoch; epochs differ a little."""
        return len(self._packing(epoch))

    @cached_property
    def fill(self) -> tuple[float, tuple[float, ...]]:
        """Share of the student's sequences of the first epoch that holds tokens, and those of all teachers'."""
        builder = self._builder
        return fill(self._packing(0), self.pieces, builder.student_sequence_length, builder.teacher_sequence_lengths)

    def _epoch_of(self, i: int) -> int:
        """The epoch of sample i, found by packing the epochs before it once each."""
        while self._first_samples[-1] <= i:
            self._first_samples.append(self._first_samples[-1] + self.epoch_samples(len(self._first_samples) - 1))
        return bisect_right(self._first_samples, i) - 1

    def _packing(self, epoch: int) -> Packing:
        """The packing of an epoch; the last two asked for are kept, since a step can span two epochs."""
        if epoch not in self._packings:
            while len(self._packings) > 1:
                del self._packings[next(iter(self._packings))]
            builder = self._builder
            lengths = builder.student_sequence_length, builder.teacher_sequence_lengths
            self._packings[epoch] = pack(self.pieces, *lengths, self._seed, epoch)
        return self._packings[epoch]


def sample_builder(
    prepared: PreparedData,
    student_sequence_length: int,
    teacher_sequence_length: int | Sequence[int],
    exact_chunks_only: bool,
    teachers: Sequence[int] | None,
    part: int = 0,
) -> SampleBuilder:
    """The pieces of prepared data for these lengths, ready to be made into samples; see `PackedDataset`."""
    count = len(prepared.teachers)
    one = isinstance(teacher_sequence_length, int)
    lengths = (teacher_sequence_length,) * count if one else tuple(teacher_sequence_length)
    assert len(lengths) == count
    return SampleBuilder(
        prepared=prepared,
        pieces=cut_pieces(prepared, student_sequence_length, lengths),
        student_sequence_length=student_sequence_length,
        teacher_sequence_lengths=lengths,
        exact_chunks_only=exact_chunks_only,
        teachers=tuple(range(count) if teachers is None else teachers),
        part=part,
    )
