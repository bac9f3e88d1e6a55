"""Several packed datasets as one stream of samples, mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.errors import ConfigError

_BLOCK = 4096
"""Samples whose order is made at a time."""


class BlendedDataset:
    """An endless stream of samples of several datasets, each in its own order, epoch after epoch.

    The order is that of Megatron's BlendedDataset: sample i is of the dataset that lacks most of its share, which is
    weight * max(i, 1) - its samples before i, in float64 with weights that sum to 1; of the first of equals. So sample
    i follows from the weights and i alone. The order is made as far as it was asked for, and kept: about a
    microsecond and 2 bytes per sample. Raises ConfigError for a weight that is not positive.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float]) -> None:
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            raise ConfigError(f"expected a positive weight for each of {len(datasets)} datasets, got {list(weights)}")
        self._datasets = datasets
        given = np.array(weights, np.float64)
        self._weights: list[float] = (given / given.sum()).tolist()
        self._blocks: list[NDArray[np.int16]] = []
        self._counts = [[0] * len(datasets)]  # samples of each dataset before each block

    def sample(self, i: int) -> Sample:
        """Sample i >= 0 of the stream."""
        dataset, k = self.source(i)
        return self._datasets[dataset].sample(k)

    def source(self, i: int) -> tuple[int, int]:
        """The dataset of sample i, and which of its samples it is."""
        block, place = divmod(i, _BLOCK)
        while len(self._blocks) <= block:
            self._make_block()
        order = self._blocks[block]
        dataset = int(order[place])
        return dataset, self._counts[block][dataset] + int(np.count_nonzero(order[:place] == dataset))

    def _make_block(self) -> None:
        counts = self._counts[-1].copy()
        first = len(self._blocks) * _BLOCK
        order = [self._next(max(i, 1), counts) for i in range(first, first + _BLOCK)]
        self._blocks.append(np.array(order, np.int16))
        self._counts.append(counts)

    def _next(self, place: float, counts: list[int]) -> int:
        """The dataset that lacks most of its share at a place of the stream, whose count goes up by one."""
        lacks = [weight * place - count for weight, count in zip(self._weights, counts, strict=True)]
        dataset = lacks.index(max(lacks))
        counts[dataset] += 1
        return dataset
