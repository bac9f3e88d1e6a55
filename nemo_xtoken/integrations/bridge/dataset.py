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
from nemo_xtoken.data.manifest import Manifest, TeacherSide
from nemo_xtoken.data.padding import Lengths, rounded_up
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import check_lengths, check_same_tokenizers, packed_dataset, prepared_teachers
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.types import DistillBatch

ENDLESS = 2**48
"""A length that no run comes to the end of."""


class AlignedSamples(Dataset[Sample]):
    """An endless stream of samples, or the first `period` of it again and again; batches are DistillBatches."""

    def __init__(self, stream: BlendedDataset, lengths: Lengths, period: int | None = None) -> None:
        self.stream, self.lengths, self.period = stream, lengths, period

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> Sample:
        return self.stream.sample(i if self.period is None else i % self.period)

    def collate_fn(self, samples: Sequence[Sample]) -> DistillBatch:
        """One micro batch."""
        return self.lengths.padded(collate(samples))


@dataclass(frozen=True)
class TeacherInData:
    """What finds a teacher of the run in the prepared data."""

    name: str
    prepared_as: str | None


@dataclass
class AlignedData(DatasetProvider):
    """The data that `nemo-xtoken data prepare` makes. Bridge's state of consumed samples is the whole state.

    data                what to read, and how it is packed
    teachers            whose sequences samples have, in this order; set by `extend`
    length_steps        sequences of the student, and of each teacher, are padded to multiples of these; set by `extend`
    validation_samples  every validation reads the first ones of the validation data; set by `extend`
    """

    data: DataConfig = field(kw_only=True)
    dataloader_type: Any = "single"
    teachers: tuple[TeacherInData, ...] = ()
    length_steps: Sequence[int] = ()
    validation_samples: int | None = None

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Training and validation data; there is no test data."""
        del context  # both are endless
        path = self.data.validation_path
        validation = None if path is None else self._samples([BlendPart(path=path)], self.validation_samples)
        return self._samples(self.data.parts), validation, None

    def stream(self, parts: Sequence[BlendPart]) -> BlendedDataset:
        """The samples of several prepared data, mixed by weight."""
        datasets = [packed_dataset(self.data, self.teachers, part.path) for part in parts]
        return BlendedDataset(datasets, [part.weight for part in parts])

    def manifest(self) -> Manifest:
        """What the training data was made from. Raises DataError or ConfigError for data of other teachers."""
        paths = [part.path for part in self.data.parts]
        manifests = [PreparedData.open(path).manifest for path in paths]
        check_lengths(self.data, manifests)
        if self.data.validation_path is not None:
            paths.append(self.data.validation_path)
            manifests.append(PreparedData.open(paths[-1]).manifest)
        for path, manifest in zip(paths, manifests, strict=True):
            check_same_tokenizers(self.teachers, path, manifest, paths[0], manifests[0])
        return manifests[0]

    def sides(self) -> list[TeacherSide]:
        """What the training data has of each teacher."""
        return prepared_teachers(self.teachers, self.manifest(), self.data.parts[0].path)

    def _samples(self, parts: Sequence[BlendPart], period: int | None = None) -> AlignedSamples:
        return AlignedSamples(self.stream(parts), self._lengths(), period)

    def _lengths(self) -> Lengths:
        packed = [self.data.student_sequence_length, *(self.data.teacher_length(side.name) for side in self.sides())]
        steps = self.length_steps or [1] * len(packed)
        student, *teachers = (rounded_up(length, step) for length, step in zip(packed, steps, strict=True))
        return Lengths(student=student, teachers=tuple(teachers))
