"""One sample: sequences of the student and of each teacher of the same pieces of text, with labels and chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.pieces import Pieces
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.types import IGNORED_LABEL, PLACES_PER_PART


@dataclass(frozen=True, kw_only=True)
class PackedSequence:
    """Pieces back to back, then padding. The last token of a piece has no label: nothing is predicted across documents.

    tokens        [s] int64
    position_ids  [s] int64, from 0 in each piece and in the padding
    labels        [s] int64, the next token of the piece, else IGNORED_LABEL
    """

    tokens: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AlignedSequence(PackedSequence):
    """A teacher's sequence, with its chunks.

    places      [t] int64 where each token lies in the prepared data, -1 in the padding; see `types.DistillBatch`
    chunk_rows  [c, 4] int64: student_start, student_end, teacher_start, teacher_end in predictor rows of the sample
    chunk_mask  [c] bool, whether the chunk counts in the loss
    """

    places: NDArray[np.int64]
    chunk_rows: NDArray[np.int64]
    chunk_mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The sequences, and what of them is learnt.

    loss_mask  [s] bool, whether the student's row counts in cross-entropy: its label is there and not of a prompt
    teachers   one sequence for each teacher that was asked for
    """

    student: PackedSequence
    loss_mask: NDArray[np.bool_]
    teachers: tuple[AlignedSequence, ...]


@dataclass(frozen=True, kw_only=True)
class SampleBuilder:
    """Makes samples of fixed lengths out of pieces of prepared data; `exact_chunks_only` masks the inexact chunks.

    teacher_sequence_lengths  of all teachers of the data, whose sequences hold all pieces
    teachers                  the numbers of those whose sequences are made, in this order; one may occur twice
    part                      the number of this data among all that a run reads
    """

    prepared: PreparedData
    pieces: Pieces
    student_sequence_length: int
    teacher_sequence_lengths: tuple[int, ...]
    exact_chunks_only: bool
    teachers: tuple[int, ...]
    part: int = 0

    def build(self, chosen: NDArray[np.int64]) -> Sample:
        """The sample of these pieces, in this order; they must fit."""
        pieces = self.pieces
        spans = _spans(pieces.student_start[chosen], pieces.student_end[chosen])
        documents = pieces.document[chosen].tolist()
        parts = [self.prepared.student_tokens(i)[span] for i, span in zip(documents, spans, strict=True)]
        student = _sequence(parts, self.student_sequence_length, self.prepared.manifest.student.padding_id)
        aligned = {number: self._aligned(chosen, number) for number in set(self.teachers)}
        return Sample(
            student=student,
            loss_mask=self._loss_mask(chosen, student.labels),
            teachers=tuple(aligned[number] for number in self.teachers),
        )

    def _aligned(self, chosen: NDArray[np.int64], number: int) -> AlignedSequence:
        """The sequence of one teacher, by its number in the data."""
        pieces, teacher = self.pieces, self.prepared.teachers[number]
        spans = _spans(pieces.teacher_start[number, chosen], pieces.teacher_end[number, chosen])
        documents = pieces.document[chosen].tolist()
        parts = [teacher.tokens(i)[span] for i, span in zip(documents, spans, strict=True)]
        sequence = _sequence(parts, self.teacher_sequence_lengths[number], teacher.side.padding_id)
        chunk_rows, exact, learnt = self._chunks(chosen, number)
        chunk_mask = learnt & (exact | (not self.exact_chunks_only))
        places = self._places(chosen, number)
        return AlignedSequence(**vars(sequence), places=places, chunk_rows=chunk_rows, chunk_mask=chunk_mask)

    def _places(self, chosen: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """[t] places of the tokens of the pieces, then -1."""
        pieces = self.pieces
        starts = self.prepared.teachers[number].first_tokens[pieces.document[chosen]]
        starts = starts + pieces.teacher_start[number, chosen] + self.part * PLACES_PER_PART
        lengths = pieces.teacher_lengths[number, chosen]
        places = np.full(self.teacher_sequence_lengths[number], -1, np.int64)
        filled = int(lengths.sum())
        places[:filled] = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(filled)
        return places

    def _loss_mask(self, chosen: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[s] rows whose label is there and is learnt: row i predicts token i + 1."""
        mask = labels != IGNORED_LABEL
        pieces = self.pieces
        prompts = self.prepared.loss_starts[pieces.document[chosen]] - pieces.student_start[chosen]
        lengths = pieces.student_lengths[chosen]
        starts = np.cumsum(lengths) - lengths
        for start, prompt in zip(starts.tolist(), prompts.tolist(), strict=True):
            if prompt > 1:
                mask[start : start + prompt - 1] = False
        return mask

    def _chunks(
        self, chosen: NDArray[np.int64], number: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Predictor rows [c, 4]: tokens [a, b) of the sequence are predicted by rows [a - 1, b - 1). Exactness [c].

        The last is whether a chunk is learnt [c]: it begins after the prompt. A chunk that begins its piece on either
        side has no predictor there and is left out.
        """
        pieces, teacher = self.pieces, self.prepared.teachers[number]
        spans = _spans(pieces.chunk_start[number, chosen], pieces.chunk_end[number, chosen])
        documents = pieces.document[chosen].tolist()
        tables = [teacher.chunk_table(i)[span] for i, span in zip(documents, spans, strict=True)]
        counts = [len(table) for table in tables]
        table = np.concatenate(tables).astype(np.int64)
        student_in_piece, student_offset = _shifts(pieces.student_start[chosen], pieces.student_lengths[chosen], counts)
        teacher_in_piece, teacher_offset = _shifts(
            pieces.teacher_start[number, chosen], pieces.teacher_lengths[number, chosen], counts
        )
        rows = table[:, :4]
        learnt = rows[:, 0] >= np.repeat(self.prepared.loss_starts[pieces.document[chosen]], counts)
        rows[:, :2] -= student_in_piece[:, None]
        rows[:, 2:] -= teacher_in_piece[:, None]
        predicted = (rows[:, 0] > 0) & (rows[:, 2] > 0)
        rows[:, :2] += student_offset[:, None] - 1
        rows[:, 2:] += teacher_offset[:, None] - 1
        return rows[predicted], table[predicted, 4] != 0, learnt[predicted]


def _spans(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[slice]:
    return [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _shifts(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], counts: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each chunk, where its piece starts in the document and where in the sequence."""
    return np.repeat(starts, counts), np.repeat(np.cumsum(lengths) - lengths, counts)


def _sequence(parts: list[NDArray[Any]], length: int, padding_id: int) -> PackedSequence:
    counts = [len(part) for part in parts]
    ends = np.cumsum(counts)
    filled = int(ends[-1])
    tokens = np.full(length, padding_id, np.int64)
    tokens[:filled] = np.concatenate(parts)
    position_ids = np.arange(length) - np.repeat([0, *ends], [*counts, length - filled])
    labels = np.full(length, IGNORED_LABEL, np.int64)
    labels[: max(filled - 1, 0)] = tokens[1:filled]
    labels[ends[ends > 0] - 1] = IGNORED_LABEL
    return PackedSequence(tokens=tokens, position_ids=position_ids, labels=labels)
