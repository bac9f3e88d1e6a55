"""What prepared data holds, and how well it fills sequences of given lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.prepared import PreparedData


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
    """How the documents pack into sequences of two lengths, in the first epoch of seed 0.

    student, teacher  shares of the sequences that hold tokens
    split_documents   documents that are longer than a sequence, in pieces that are cut between chunks
    dropped_chunks    chunks that alone are longer than a sequence
    prompt_pieces     pieces that hold nothing but prompt, left out
    """

    student_sequence_length: int
    teacher_sequence_length: int
    samples: int
    student: float
    teacher: float
    pieces: int
    split_documents: int
    dropped_chunks: int
    prompt_pieces: int


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A manifest, the lengths of the documents, the share of student tokens that is learnt, and the fill if asked."""

    manifest: Manifest
    student: Lengths
    teacher: Lengths | None
    learnt_share: float
    fill: Fill | None


def inspect(path: str | Path, lengths: tuple[int, int] | None = None) -> Statistics:
    """Statistics of prepared data, with the fill for these student and teacher sequence lengths.

    Raises DataError for what is not prepared data, and where nothing fits.
    """
    prepared = PreparedData.open(path)
    tokens = int(prepared.student_lengths.sum())
    return Statistics(
        manifest=prepared.manifest,
        student=Lengths.of(prepared.student_lengths),
        teacher=None if prepared.manifest.teacher is None else Lengths.of(prepared.teacher_lengths),
        learnt_share=(tokens - int(prepared.loss_starts.sum())) / tokens,
        fill=None if lengths is None else measure_fill(prepared, *lengths),
    )


def measure_fill(prepared: PreparedData, student_sequence_length: int, teacher_sequence_length: int) -> Fill:
    """Pack one epoch and count. Raises DataError where nothing fits."""
    dataset = PackedDataset(prepared, student_sequence_length, teacher_sequence_length, seed=0)
    pieces = dataset.pieces
    student, teacher = dataset.fill
    too_long = prepared.student_lengths > student_sequence_length
    if prepared.manifest.teacher is not None:
        too_long |= prepared.teacher_lengths > teacher_sequence_length
    return Fill(
        student_sequence_length=student_sequence_length,
        teacher_sequence_length=teacher_sequence_length,
        samples=dataset.epoch_samples(0),
        student=student,
        teacher=teacher,
        pieces=len(pieces),
        split_documents=int(too_long.sum()),
        dropped_chunks=pieces.dropped_chunks,
        prompt_pieces=pieces.prompt_pieces,
    )
