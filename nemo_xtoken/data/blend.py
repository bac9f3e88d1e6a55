"""Several packed datasets as one stream of samples, mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.errors import ConfigError


class BlendedDataset:
    """An endless stream of samples of several datasets, each in its own order, epoch after epoch.

    Sample k of a dataset of weight w (weights sum to 1) is due at (k + 1/2) / w; the stream is all samples by when they
    are due, then by dataset. So among the first n samples a dataset has n w, give or take fewer than the number of
    datasets, and sample i follows from the weights and i alone. Raises ConfigError for a weight that is not positive.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float]) -> None:
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            raise ConfigError(f"expected a positive weight for each of {len(datasets)} datasets, got {list(weights)}")
        self._datasets = datasets
        total = sum(map(Fraction, weights))
        self._weights = [Fraction(weight) / total for weight in weights]
        self._counts = [0] * len(datasets)

    def sample(self, i: int) -> Sample:
        """Sample i >= 0 of the stream."""
        dataset, k = self.source(i)
        return self._datasets[dataset].sample(k)

    def source(self, i: int) -> tuple[int, int]:
        """The dataset of sample i, and which of its samples it is."""
        if not 0 <= i - sum(self._counts) <= 64:
            self._counts = self._counts_before(i)
        while sum(self._counts) < i:
            self._counts[self._next()] += 1
        dataset = self._next()
        return dataset, self._counts[dataset]

    def _next(self) -> int:
        """The dataset whose next sample is due first."""
        return min(range(len(self._counts)), key=lambda d: (2 * self._counts[d] + 1) / self._weights[d])

    def _counts_before(self, i: int) -> list[int]:
        """Samples of each dataset that are due before i less the number of datasets: at most i in all."""
        time = max(i - len(self._weights), 0)
        return [int(weight * time + Fraction(1, 2)) for weight in self._weights]
