"""Which pieces share a sample: the sequences of all sides have to hold all of its pieces."""

from __future__ import annotations

from collections.abc import Sequence
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


def pack(
    pieces: Pieces, student_sequence_length: int, teacher_sequence_lengths: Sequence[int], seed: int, epoch: int
) -> Packing:
    """Every piece once, in samples of at most these lengths; the same for the same seed and epoch, on every machine.

    Pieces are shuffled, then packed in windows: longest first, each into the open sample it fills best. Samples are
    shuffled again, since the packing sorts them; within a sample the order is the shuffled one.
    """
    order = _shuffled(len(pieces), seed, epoch, stream=0)
    sizes = _sizes(pieces)
    sample_of = np.empty(len(pieces), np.int64)
    samples = _OpenSamples(student_sequence_length, teacher_sequence_lengths)
    for at in range(0, len(order), WINDOW):
        window = order[at : at + WINDOW]
        sample_of[at : at + WINDOW] = samples.place(sizes[:, window])
    new_place = np.empty(samples.count, np.int64)
    new_place[_shuffled(samples.count, seed, epoch, stream=1)] = np.arange(samples.count)
    return _grouped(order, new_place[sample_of], samples.count)


def pack_in_order(pieces: Pieces, student_sequence_length: int, teacher_sequence_lengths: Sequence[int]) -> Packing:
    """Every piece once, in document order; a sample ends where the next piece does not fit."""
    sample_of: list[int] = []
    sample = 0
    lengths = [student_sequence_length, *teacher_sequence_lengths]
    room = lengths
    for sizes in _sizes(pieces).T.tolist():
        left = [there - size for there, size in zip(room, sizes, strict=True)]
        if min(left) < 0:
            sample += 1
            left = [there - size for there, size in zip(lengths, sizes, strict=True)]
        room = left
        sample_of.append(sample)
    return _grouped(np.arange(len(pieces)), np.array(sample_of, np.int64), sample + 1)


def fill(
    packing: Packing, pieces: Pieces, student_sequence_length: int, teacher_sequence_lengths: Sequence[int]
) -> tuple[float, tuple[float, ...]]:
    """Share of the student's sequences that holds tokens, and those of each teacher's."""
    lengths = [student_sequence_length, *teacher_sequence_lengths]
    tokens = _sizes(pieces).sum(1).tolist()
    student, *teachers = (held / (len(packing) * length) for held, length in zip(tokens, lengths, strict=True))
    return student, tuple(teachers)


def _sizes(pieces: Pieces) -> NDArray[np.int64]:
    """Tokens of every piece on every side, the student's first: [1 + teachers, p]."""
    return np.concatenate([pieces.student_lengths[None], pieces.teacher_lengths])


def _shuffled(count: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """A permutation [count]. Sorted raw bits: numpy keeps a bit generator's stream across versions, not its shuffle."""
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch, stream])).random_raw(count)
    return np.argsort(bits, kind="stable")


def _grouped(order: NDArray[np.int64], sample_of: NDArray[np.int64], count: int) -> Packing:
    counts = np.bincount(sample_of, minlength=count)
    return Packing(order[np.argsort(sample_of, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))


class _OpenSamples:
    """Samples that still have room. Room is compared as a share of its sequence: float64, which tells all shares of
    sequences of less than 2^26 tokens apart, so that the order is that of exact arithmetic on every machine."""

    def __init__(self, student_sequence_length: int, teacher_sequence_lengths: Sequence[int]) -> None:
        self.count = 0
        self._lengths = np.array([student_sequence_length, *teacher_sequence_lengths], np.int64)[:, None]
        self._ids = np.empty(0, np.int64)
        self._room = np.empty((len(self._lengths), 0), np.int64)

    def place(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample of each piece of a window, [w], for sizes [sides, w]."""
        count = sizes.shape[1]
        self._open(count)
        chosen = np.empty(count, np.int64)
        longest_first = np.argsort(-(sizes / self._lengths).max(0), kind="stable")
        used = carried = len(self._ids) - count
        for i in longest_first.tolist():
            slot = self._best(sizes[:, i : i + 1], used)
            used = max(used, slot + 1)
            self._room[:, slot] -= sizes[:, i]
            chosen[i] = slot
        placed = self._ids[chosen]
        self.count += used - carried
        self._keep_roomiest(used)
        return placed

    def _open(self, count: int) -> None:
        """Room for the worst case, a sample for each piece."""
        self._ids = np.concatenate([self._ids, self.count + np.arange(count)])
        self._room = np.concatenate([self._room, np.repeat(self._lengths, count, axis=1)], axis=1)

    def _best(self, size: NDArray[np.int64], used: int) -> int:
        """The used slot that a piece of size [sides, 1] leaves least room in, or the first unused one."""
        if not used:
            return 0
        left = ((self._room[:, :used] - size) / self._lengths).min(0)
        left[left < 0] = np.inf
        best = int(left.argmin())
        return best if left[best] < np.inf else used

    def _keep_roomiest(self, used: int) -> None:
        """Close all but the samples with most room, which bounds the time of `_best`."""
        room = (self._room[:, :used] / self._lengths).min(0)
        kept = np.sort(np.argsort(-room, kind="stable")[:OPEN_SAMPLES])
        self._ids, self._room = self._ids[kept], self._room[:, kept]
