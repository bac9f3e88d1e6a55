"""A teacher without a model: what `nemo-xtoken teacher cache` has stored of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.parallel import ShardedPair, context_positions
from nemo_xtoken.teachers.cache import CacheReader
from nemo_xtoken.teachers.protocol import SampleRange, TeacherHead
from nemo_xtoken.types import PLACES_PER_PART, DistillBatch, SparseLogits


class CachedSource:
    """Reads the rows of a micro batch's tokens from caches, one for each part of the data that a run reads.

    All caches are of the same teacher and storage. With cp each rank reads hidden states of its own positions; sparse
    probabilities it reads of all, since no row of them has to travel.
    """

    def __init__(
        self, readers: Sequence[CacheReader], cp_group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._readers, self._cp_group, self._device, self._dtype = readers, cp_group, device, dtype
        self.storage = readers[0].manifest.storage

    def head(self, pair: ShardedPair) -> TeacherHead | None:
        """The stored rows `pair.teacher_rows`; None for probabilities, which need no head."""
        if self.storage.is_sparse:
            return None
        weight, options = self._readers[0].head().rows(pair.teacher_rows, self._device, self._dtype)
        return TeacherHead(weight, options)

    def begin(self, announced: Iterator[SampleRange]) -> None:
        """Rows are found by their places, whatever comes."""

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Nothing is read before it is asked for."""

    def hidden(self, batch: DistillBatch) -> Tensor | SparseLogits:
        """[b*t/cp, h_T] hidden states, 0 in the padding; or entries of all rows [b*t, count], none in the padding."""
        assert batch.teacher_places is not None
        places = batch.teacher_places.cpu()
        if self.storage.is_sparse:
            return self._sparse(places.flatten())
        own = context_positions(places.shape[1], self._cp_group.rank(), self._cp_group.size())
        places = places[:, own].flatten()
        hidden = torch.zeros(len(places), self._readers[0].manifest.hidden_size, dtype=self._dtype)
        for reader, at, tokens in self._by_part(places):
            hidden[at] = reader.hidden(tokens).to(self._dtype)
        return hidden.to(self._device)

    def close(self) -> None:
        """Mapped files close with the process."""

    def _sparse(self, places: Tensor) -> SparseLogits:
        count, vocab_size = self.storage.count, self._readers[0].manifest.vocab_size
        found = SparseLogits.empty(len(places), count, vocab_size)
        for reader, at, tokens in self._by_part(places):
            part = reader.sparse(tokens)
            found.ids[at], found.log_probs[at] = part.ids, part.log_probs
        return found.to(self._device)

    def _by_part(self, places: Tensor) -> list[tuple[CacheReader, Tensor, Tensor]]:
        """For each part with some of the places: its cache, which of them, and the numbers of their tokens."""
        part = torch.where(places < 0, -1, places // PLACES_PER_PART)
        return [
            (self._readers[number], at, places[at] % PLACES_PER_PART)
            for number in part.unique().tolist()
            if number >= 0
            for at in [(part == number).nonzero().squeeze(-1)]
        ]
