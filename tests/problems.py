"""Random, small loss problems with everything a loss can meet: gaps, long chunks, padding, empty rows of W."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.piece_table import PieceTable
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, DistillBatch


@dataclass(frozen=True)
class Problem:
    """Hidden states, heads, W and a batch that belong together."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    batch: DistillBatch
    matrix: ProjectionMatrix

    @property
    def student_logits(self) -> Tensor:
        return self.student_hidden @ self.student_head.t()

    @property
    def teacher_logits(self) -> Tensor:
        return self.teacher_hidden @ self.teacher_head.t()


def random_matrix(rng: np.random.Generator, student_vocab: int, teacher_vocab: int) -> ProjectionMatrix:
    """Half exact rows, some empty ones, the rest of two to four pieces; some teacher ids stay without an entry."""
    indices = np.full((student_vocab, 4), -1, np.int32)
    weights = np.zeros((student_vocab, 4), np.float32)
    partners = rng.permutation(teacher_vocab)[: student_vocab // 2]
    for s in range(student_vocab):
        kind = "exact" if s < len(partners) else rng.choice(["pieces", "empty"], p=[0.8, 0.2])
        if kind == "exact":
            indices[s, 0], weights[s, 0] = partners[s], 1
        elif kind == "pieces":
            count = int(rng.integers(2, 5))
            indices[s, :count] = rng.choice(teacher_vocab, count, replace=False)
            piece_weights = 0.9 * 0.1 ** np.arange(count)
            weights[s, :count] = piece_weights / piece_weights.sum()
    order = rng.permutation(student_vocab)
    return ProjectionMatrix(indices[order], weights[order], teacher_vocab)


def random_chunks(rng: np.random.Generator, sequences: int, length: int, teacher_length: int) -> ChunkRows:
    """Runs of one to three rows on each side, now and then a gap; the tail of every sequence is padding."""
    table: list[tuple[int, int, int, int, bool]] = []
    for sequence in range(sequences):
        s, t = sequence * length, sequence * teacher_length
        while True:
            s += int(rng.random() < 0.1)
            t += int(rng.random() < 0.1)
            students, teachers = (int(n) for n in rng.choice([1, 1, 1, 2, 3], 2))
            if s + students >= (sequence + 1) * length or t + teachers >= (sequence + 1) * teacher_length:
                break
            table.append((s, s + students, t, t + teachers, bool(rng.random() < 0.85)))
            s, t = s + students, t + teachers
    columns = [torch.tensor(column) for column in zip(*table, strict=True)]
    return ChunkRows(
        student_start=columns[0],
        student_end=columns[1],
        teacher_start=columns[2],
        teacher_end=columns[3],
        mask=columns[4],
    )


def random_labels(rng: np.random.Generator, sequences: int, length: int, vocab: int) -> Tensor:
    """Labels with an ignored last row in every sequence and a few ignored rows elsewhere."""
    labels = torch.from_numpy(rng.integers(0, vocab, (sequences, length)))
    labels[:, -1] = IGNORED_LABEL
    labels[torch.from_numpy(rng.random((sequences, length)) < 0.1)] = IGNORED_LABEL
    return labels


def random_problem(
    seed: int = 0,
    *,
    student_vocab: int = 23,
    teacher_vocab: int = 19,
    student_padding: int = 0,
    teacher_padding: int = 0,
    sequences: int = 2,
    length: int = 20,
    teacher_length: int = 24,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)

    student_labels = random_labels(rng, sequences, length, student_vocab)
    teacher_labels = random_labels(rng, sequences, teacher_length, teacher_vocab)
    batch = DistillBatch(
        student_tokens=torch.zeros(sequences, length, dtype=torch.int64),
        student_position_ids=torch.arange(length).expand(sequences, -1),
        student_labels=student_labels,
        student_loss_mask=(student_labels != IGNORED_LABEL).float(),
        teacher_tokens=torch.zeros(sequences, teacher_length, dtype=torch.int64),
        teacher_position_ids=torch.arange(teacher_length).expand(sequences, -1),
        teacher_labels=teacher_labels,
        chunks=random_chunks(rng, sequences, length, teacher_length),
    )
    return Problem(
        student_hidden=normal(sequences * length, 6),
        student_head=normal(student_vocab + student_padding, 6),
        teacher_hidden=normal(sequences * teacher_length, 5),
        teacher_head=normal(teacher_vocab + teacher_padding, 5),
        batch=batch,
        matrix=random_matrix(rng, student_vocab, teacher_vocab),
    )


def piece_table(pieces: Sequence[Sequence[int]]) -> PieceTable:
    """The table of these pieces, those of a token after another's."""
    ends = np.cumsum([len(taus) for taus in pieces], dtype=np.int32)
    return PieceTable(np.array([tau for taus in pieces for tau in taus], np.int32), ends)


TEACHERS_OWN = 8
"""Teacher tokens of `chain_problem`, the last ones, that no student token begins with."""


def chain_problem(seed: int = 0, *, student_vocab: int = 40, teacher_vocab: int = 27, **others: Any) -> Problem:
    """A random problem in which tokens of either side are sequences of the other's, and most chunks of one are such.

    Half of the pieces are among three tokens, so that many tokens begin alike; some tokens are nothing to the other
    side, and some pieces are no token's first.
    """
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, student_vocab=student_vocab, teacher_vocab=teacher_vocab, **others)
    pieces = _random_pieces(rng, student_vocab, teacher_vocab - TEACHERS_OWN)
    teacher_pieces = _random_teacher_pieces(rng, pieces, teacher_vocab)
    student_labels, teacher_labels = (x.flatten() for x in (problem.batch.student_labels, problem.batch.teacher_labels))
    chunks = problem.batch.chunks
    for a, b, c, d in zip(
        *(x.tolist() for x in (chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end)),
        strict=True,
    ):
        fitting = [token for token, taus in enumerate(pieces) if len(taus) == d - c]
        fitting_teacher = [token for token, sigmas in enumerate(teacher_pieces) if len(sigmas) == b - a]
        if b - a == 1 and fitting and rng.random() < 0.8:
            token = int(rng.choice(fitting))
            student_labels[a], teacher_labels[c:d] = token, torch.tensor(pieces[token])
        elif d - c == 1 and b - a > 1 and fitting_teacher and rng.random() < 0.8:
            token = int(rng.choice(fitting_teacher))
            teacher_labels[c], student_labels[a:b] = token, torch.tensor(teacher_pieces[token])
    whole = ProjectionMatrix(np.full((student_vocab, 1), -1, np.int32), np.zeros((student_vocab, 1), np.float32), 99)
    tables = {"pieces": piece_table(pieces), "teacher_pieces": piece_table(teacher_pieces)}
    first = replace(whole, teacher_vocab_size=teacher_vocab, **tables).first_pieces()
    batch = replace(
        problem.batch,
        student_labels=student_labels.view_as(problem.batch.student_labels),
        teacher_labels=teacher_labels.view_as(problem.batch.teacher_labels),
    )
    return replace(problem, batch=batch, matrix=first)


def _random_teacher_pieces(rng: np.random.Generator, pieces: list[list[int]], teacher_vocab: int) -> list[list[int]]:
    """A teacher token with an equal is that one's; each other is two or three student tokens, most among three."""
    equal = {taus[0]: token for token, taus in reversed(list(enumerate(pieces))) if len(taus) == 1}
    filled = [token for token, taus in enumerate(pieces) if taus]
    others = [
        [int(rng.choice(filled[:3] if rng.random() < 0.7 else range(len(pieces)))) for _ in range(rng.integers(2, 4))]
        for _ in range(teacher_vocab)
    ]
    return [[equal[token]] if token in equal else others[token] for token in range(teacher_vocab)]


def _random_pieces(rng: np.random.Generator, student_vocab: int, teacher_vocab: int) -> list[list[int]]:
    found: dict[tuple[int, ...], None] = {}
    while len(found) < student_vocab - 3:
        count = int(rng.choice([1, 2, 3]))
        few = (
            rng.integers(0, 3, count)
            if rng.random() < 0.7
            else rng.integers(0, teacher_vocab - 6 * (count == 1), count)
        )
        found[tuple(int(tau) for tau in few)] = None
    pieces: list[list[int]] = [[], [], [], *(list(taus) for taus in found)]
    return [pieces[i] for i in rng.permutation(student_vocab)]
