"""What prepared data holds, and how well it fills sequences of given lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the documents on one side."""

    total: int
    mean: float
    median: int
    percentile_95: int
    longest: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Lengths:
        """Of [documents] lengths, at least one."""
        median, high = np.percentile(lengths, [50, 95], method="lower")
        return cls(
            total=int(lengths.sum()),
            mean=float(lengths.mean()),
            median=int(median),
            percentile_95=int(high),
            longest=int(lengths.max()),
        )


@dataclass(frozen=True, kw_only=True)
class Fill:
    """How the documents pack into sequences of these lengths, in the first epoch of seed 0.

    student, teachers  shares of the sequences that hold tokens
    split_documents    documents that are longer than a sequence, in pieces that are cut between chunks
    dropped_chunks     chunks that alone are longer than a sequence
    prompt_pieces      pieces that hold nothing but prompt, left out
    """

    student_sequence_length: int
    teacher_sequence_lengths: tuple[int, ...]
    samples: int
    student: float
    teachers: tuple[float, ...]
    pieces: int
    split_documents: int
    dropped_chunks: int
    prompt_pieces: int


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A manifest, the lengths of the documents, the share of student tokens that is learnt, and the fill if asked."""

    manifest: Manifest
    student: Lengths
    teachers: tuple[Lengths, ...]
    learnt_share: float
    fill: Fill | None


def inspect(path: str | Path, lengths: tuple[int, int | Mapping[str, int]] | None = None) -> Statistics:
    """Statistics of prepared data, with the fill for these student and teacher sequence lengths.

    lengths  the teachers' is one for all of them, or one for each by its name
    Raises DataError for what is not prepared data, for lengths of other teachers, and where nothing fits.
    """
    prepared = PreparedData.open(path)
    tokens = int(prepared.student_lengths.sum())
    return Statistics(
        manifest=prepared.manifest,
        student=Lengths.of(prepared.student_lengths),
        teachers=tuple(Lengths.of(teacher.lengths) for teacher in prepared.teachers),
        learnt_share=(tokens - int(prepared.loss_starts.sum())) / tokens,
        fill=None if lengths is None else measure_fill(prepared, *lengths),
    )


def measure_fill(
    prepared: PreparedData, student_sequence_length: int, teacher_sequence_length: int | Mapping[str, int]
) -> Fill:
    """Pack one epoch and count; lengths as of `inspect`. Raises DataError where nothing fits."""
    lengths = _lengths(prepared, teacher_sequence_length)
    dataset = PackedDataset(prepared, student_sequence_length, lengths, seed=0)
    pieces = dataset.pieces
    student, teachers = dataset.fill
    too_long = prepared.student_lengths > student_sequence_length
    for teacher, length in zip(prepared.teachers, lengths, strict=True):
        too_long |= teacher.lengths > length
    return Fill(
        student_sequence_length=student_sequence_length,
        teacher_sequence_lengths=lengths,
        samples=dataset.epoch_samples(0),
        student=student,
        teachers=teachers,
        pieces=len(pieces),
        split_documents=int(too_long.sum()),
        dropped_chunks=pieces.dropped_chunks,
        prompt_pieces=pieces.prompt_pieces,
    )


def _lengths(prepared: PreparedData, given: int | Mapping[str, int]) -> tuple[int, ...]:
    names = prepared.manifest.teacher_names
    if isinstance(given, int):
        return (given,) * len(names)
    if set(given) != set(names):
        raise DataError(
            f"{prepared.path} holds the teachers {', '.join(names)}; expected a length for each, got some for "
            f"{', '.join(given)}"
        )
    return tuple(given[name] for name in names)
