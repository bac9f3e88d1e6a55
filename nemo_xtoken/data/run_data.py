"""Prepared data as a run asks for it: which of its teachers are the run's, and how long their sequences are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nemo_xtoken.config import BlendPart, DataConfig
from nemo_xtoken.data.blend import BlendedDataset
from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest, Side, TeacherSide
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import ConfigError, DataError


class PreparedTeacher(Protocol):
    """What says which teacher of prepared data is meant, whatever framework runs it."""

    @property
    def name(self) -> str:
        """Of the run's teacher."""
        ...

    @property
    def prepared_as(self) -> str | None:
        """Its name in the data, where that is another one."""
        ...


def teacher_numbers(teachers: Sequence[PreparedTeacher], manifest: Manifest, path: str) -> tuple[int, ...]:
    """For each teacher of a run, its number among those of the data at `path`.

    It is the one of the name `prepared_as`, else of the teacher's own name. Where both have one teacher only, a name
    that is not asked for decides nothing. Two teachers may have the same tokens. Raises DataError for a missing one.
    """
    if teachers and not manifest.teachers:
        raise DataError(f"{path} was prepared without a teacher; prepare it with --teacher, or set teachers=[]")
    only = len(teachers) == len(manifest.teachers) == 1
    numbers: list[int] = []
    for i, teacher in enumerate(teachers):
        wanted = teacher.prepared_as or teacher.name
        if wanted in manifest.teacher_names:
            numbers.append(manifest.teacher_names.index(wanted))
        elif only and teacher.prepared_as is None:
            numbers.append(0)
        else:
            raise DataError(
                f"{path} has no teacher {wanted!r}, it was prepared with {', '.join(manifest.teacher_names)}; "
                f"prepare it with --teacher {wanted}=SPEC, or say which of these it is: teachers.{i}.prepared_as=NAME"
            )
    return tuple(numbers)


def prepared_teachers(teachers: Sequence[PreparedTeacher], manifest: Manifest, path: str) -> list[TeacherSide]:
    """What the data at `path` holds of each teacher of a run. Raises DataError for a missing one."""
    return [manifest.teachers[number] for number in teacher_numbers(teachers, manifest, path)]


def check_same_tokenizers(
    teachers: Sequence[PreparedTeacher], path: str, manifest: Manifest, trained_path: str, trained_on: Manifest
) -> None:
    """Raises DataError where the data at `path` is of other tokenizers than that at `trained_path`."""
    _check_same("student", trained_on.student, trained_path, manifest.student, path)
    first = prepared_teachers(teachers, trained_on, trained_path)
    for teacher, ours, theirs in zip(teachers, first, prepared_teachers(teachers, manifest, path), strict=True):
        name = f"teacher {teacher.name!r}'s" if len(teachers) > 1 else "teacher"
        _check_same(name, ours, trained_path, theirs, path)


def _check_same(name: str, ours: Side, trained_path: str, theirs: Side, path: str) -> None:
    if ours.fingerprint != theirs.fingerprint:
        raise DataError(f"{path} was not prepared with the {name} tokenizer of {trained_path}; prepare it with that")


def check_lengths(data: DataConfig, manifests: Sequence[Manifest]) -> None:
    """Raises ConfigError where `teacher_lengths` names a teacher that none of the training data has."""
    names = list(dict.fromkeys(name for manifest in manifests for name in manifest.teacher_names))
    for i, entry in enumerate(data.teacher_lengths):
        if entry.teacher not in names:
            raise ConfigError(
                f"data.teacher_lengths.{i} is of {entry.teacher!r}, but the data was prepared with "
                f"{', '.join(names) or 'no teacher'}; give it one of these names"
            )


def teacher_lengths(data: DataConfig, manifest: Manifest) -> tuple[int, ...]:
    """The sequence lengths of all teachers of prepared data, in its order."""
    return tuple(data.teacher_length(name) for name in manifest.teacher_names)


def data_paths(data: DataConfig) -> tuple[str, ...]:
    """All data that a run reads, by the numbers of its parts: what it trains on, then its validation data."""
    validation = () if data.validation_path is None else (data.validation_path,)
    return (*(part.path for part in data.parts), *validation)


def packed_dataset(data: DataConfig, teachers: Sequence[PreparedTeacher], path: str, part: int = 0) -> PackedDataset:
    """The samples of the data at `path`, with a sequence for each teacher of a run, in the run's order.

    part  its number among `data_paths`
    """
    prepared = PreparedData.open(path)
    return PackedDataset(
        prepared,
        data.student_sequence_length,
        teacher_lengths(data, prepared.manifest),
        data.seed,
        data.exact_chunks_only,
        teacher_numbers(teachers, prepared.manifest, path),
        part,
    )


def blended_dataset(
    data: DataConfig, teachers: Sequence[PreparedTeacher], parts: Sequence[BlendPart], first_part: int = 0
) -> BlendedDataset:
    """The samples of several prepared data, mixed by weight; `first_part` is the number of the first of them."""
    datasets = [packed_dataset(data, teachers, part.path, first_part + i) for i, part in enumerate(parts)]
    return BlendedDataset(datasets, [part.weight for part in parts])
