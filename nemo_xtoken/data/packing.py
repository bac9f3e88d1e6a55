"""Which pieces share a sample: both of its sequences have to hold all of its pieces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.pieces import Pieces

WINDOW = 2048
"""Pieces packed at a time, longest first."""

OPEN_SAMPLES = 256
"""Samples with room left that stay open for the next window."""


@dataclass(frozen=True)
class Packing:
    """The samples of one epoch: sample i holds pieces order[offsets[i]:offsets[i + 1]].

    order    [p] int64, a permutation of the pieces
    offsets  [samples + 1] int64
    """

    order: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> NDArray[np.int64]:
        return self.order[self.offsets[i] : self.offsets[i + 1]]


def pack(pieces: Pieces, student_sequence_length: int, teacher_sequence_length: int, seed: int, epoch: int) -> Packing:
    """Every piece once, in samples of at most the two lengths; the same for the same seed and epoch, on every machine.

    Pieces are shuffled, then packed in windows: longest first, each into the open sample it fills best. Samples are
    shuffled again, since the packing sorts them; within a sample the order is the shuffled one.
    """
    order = _shuffled(len(pieces), seed, epoch, stream=0)
    sample_of = np.empty(len(pieces), np.int64)
    samples = _OpenSamples(student_sequence_length, teacher_sequence_length)
    for at in range(0, len(order), WINDOW):
        window = order[at : at + WINDOW]
        sample_of[at : at + WINDOW] = samples.place(pieces.student_lengths[window], pieces.teacher_lengths[window])
    new_place = np.empty(samples.count, np.int64)
    new_place[_shuffled(samples.count, seed, epoch, stream=1)] = np.arange(samples.count)
    return _grouped(order, new_place[sample_of], samples.count)


def pack_in_order(pieces: Pieces, student_sequence_length: int, teacher_sequence_length: int) -> Packing:
    """Every piece once, in document order; a sample ends where the next piece does not fit."""
    sample_of: list[int] = []
    sample = 0
    student_room, teacher_room = student_sequence_length, teacher_sequence_length
    for student, teacher in zip(pieces.student_lengths.tolist(), pieces.teacher_lengths.tolist(), strict=True):
        if student > student_room or teacher > teacher_room:
            sample += 1
            student_room, teacher_room = student_sequence_length, teacher_sequence_length
        student_room -= student
        teacher_room -= teacher
        sample_of.append(sample)
    return _grouped(np.arange(len(pieces)), np.array(sample_of, np.int64), sample + 1)


def fill(
    packing: Packing, pieces: Pieces, student_sequence_length: int, teacher_sequence_length: int
) -> tuple[float, float]:
    """Shares of the student's and the teacher's sequences that hold tokens; the teacher's is 0 without one."""
    student, teacher = int(pieces.student_lengths.sum()), int(pieces.teacher_lengths.sum())
    samples = len(packing)
    return student / (samples * student_sequence_length), teacher / (samples * max(teacher_sequence_length, 1))


def _shuffled(count: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """A permutation [count]. Sorted raw bits: numpy keeps a bit generator's stream across versions, not its shuffle."""
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch, stream])).random_raw(count)
    return np.argsort(bits, kind="stable")


def _grouped(order: NDArray[np.int64], sample_of: NDArray[np.int64], count: int) -> Packing:
    counts = np.bincount(sample_of, minlength=count)
    return Packing(order[np.argsort(sample_of, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))


class _OpenSamples:
    """Samples that still have room. Room is compared in units of both lengths at once: student x T and teacher x S."""

    def __init__(self, student_sequence_length: int, teacher_sequence_length: int) -> None:
        self.count = 0
        self._student_length = student_sequence_length
        self._teacher_length = max(teacher_sequence_length, 1)
        self._ids = np.empty(0, np.int64)
        self._student_room = np.empty(0, np.int64)
        self._teacher_room = np.empty(0, np.int64)

    def place(self, student: NDArray[np.int64], teacher: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample of each piece of a window, [w], for lengths [w]."""
        self._open(len(student))
        chosen = np.empty(len(student), np.int64)
        longest_first = np.argsort(
            -np.maximum(student * self._teacher_length, teacher * self._student_length), kind="stable"
        )
        used = carried = len(self._ids) - len(student)
        for i in longest_first.tolist():
            slot = self._best(int(student[i]), int(teacher[i]), used)
            used = max(used, slot + 1)
            self._student_room[slot] -= student[i]
            self._teacher_room[slot] -= teacher[i]
            chosen[i] = slot
        placed = self._ids[chosen]
        self.count += used - carried
        self._keep_roomiest(used)
        return placed

    def _open(self, count: int) -> None:
        """Room for the worst case, a sample for each piece."""
        self._ids = np.concatenate([self._ids, self.count + np.arange(count)])
        self._student_room = np.concatenate([self._student_room, np.full(count, self._student_length)])
        self._teacher_room = np.concatenate([self._teacher_room, np.full(count, self._teacher_length)])

    def _best(self, student: int, teacher: int, used: int) -> int:
        """The used slot that the piece leaves least room in, or the first unused one."""
        student_left = (self._student_room[:used] - student) * self._teacher_length
        teacher_left = (self._teacher_room[:used] - teacher) * self._student_length
        left = np.minimum(student_left, teacher_left)
        left[left < 0] = np.iinfo(np.int64).max
        best = int(left.argmin()) if used else 0
        return best if used and left[best] != np.iinfo(np.int64).max else used

    def _keep_roomiest(self, used: int) -> None:
        """Close all but the samples with most room, which bounds the time of `_best`."""
        room = np.minimum(self._student_room * self._teacher_length, self._teacher_room * self._student_length)[:used]
        kept = np.sort(np.argsort(-room, kind="stable")[:OPEN_SAMPLES])
        self._ids, self._student_room, self._teacher_room = (
            values[kept] for values in (self._ids, self._student_room, self._teacher_room)
        )
