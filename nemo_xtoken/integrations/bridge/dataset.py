"""Prepared data as a dataset of Bridge's, whose samplers then bring the same micro batches as our own loop."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.training.config import DatasetBuildContext, DatasetProvider
from torch.utils.data import Dataset

from nemo_xtoken.config import BlendPart, DataConfig
from nemo_xtoken.data.blend import BlendedDataset
from nemo_xtoken.data.collate import collate
from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import DistillBatch

ENDLESS = 2**48
"""A length that no run comes to the end of."""


class AlignedSamples(Dataset[Sample]):
    """An endless stream of samples, or the first `period` of it again and again; batches are DistillBatches."""

    def __init__(self, stream: BlendedDataset, period: int | None = None) -> None:
        self.stream, self.period = stream, period

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Sample:
        return self.stream.sample(i if self.period is None else i % self.period)

    def collate_fn(self, samples: Sequence[Sample]) -> DistillBatch:
        """One micro batch."""
        return collate(samples)


@dataclass
class AlignedData(DatasetProvider):
    """The data that `nemo-xtoken data prepare` makes. Bridge's state of consumed samples is the whole state.

    data                what to read, and how it is packed
    validation_samples  every validation reads the first ones of the validation data; set by `extend`
    """

    data: DataConfig = field(kw_only=True)
    dataloader_type: Any = "single"
    validation_samples: int | None = None

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Training and validation data; there is no test data."""
        del context  # both are endless
        path = self.data.validation_path
        validation = None if path is None else self._samples([BlendPart(path=path)], self.validation_samples)
        return self._samples(self.data.parts), validation, None

    def stream(self, parts: Sequence[BlendPart]) -> BlendedDataset:
        """The samples of several prepared data, mixed by weight."""
        data = self.data
        datasets = [
            PackedDataset(
                PreparedData.open(part.path),
                data.student_sequence_length,
                data.teacher_sequence_length,
                data.seed,
                data.exact_chunks_only,
            )
            for part in parts
        ]
        return BlendedDataset(datasets, [part.weight for part in parts])

    def manifest(self) -> Manifest:
        """What the training data was made from. Raises DataError where its parts have different tokenizers."""
        paths = [part.path for part in self.data.parts]
        paths += [] if self.data.validation_path is None else [self.data.validation_path]
        first, *others = [PreparedData.open(path).manifest for path in paths]
        for path, other in zip(paths[1:], others, strict=True):
            if _fingerprints(other) != _fingerprints(first):
                raise DataError(f"{path} was not prepared with the tokenizers of {paths[0]}; prepare it with those")
        return first

    def _samples(self, parts: Sequence[BlendPart], period: int | None = None) -> AlignedSamples:
        return AlignedSamples(self.stream(parts), period)


def _fingerprints(manifest: Manifest) -> tuple[str, str | None]:
    teacher = manifest.teacher
    return manifest.student.fingerprint, None if teacher is None else teacher.fingerprint
