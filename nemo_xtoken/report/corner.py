"""A small, telling part of W: some numerals of several digits, their pieces, and the pieces' own rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.report.aligned_tokens import Token, visible
from nemo_xtoken.tokenizers import Tokenizer


@dataclass(frozen=True)
class Corner:
    """Some rows (student tokens) and columns (teacher tokens) of W with the weights between them, [rows, columns]."""

    rows: tuple[Token, ...]
    columns: tuple[Token, ...]
    weights: NDArray[np.float64]


def corner(matrix: ProjectionMatrix, student: Tokenizer, teacher: Tokenizer, sentence: str, size: int = 7) -> Corner:
    """How `size` student tokens, those of the sentence first, spread over the teacher's."""
    spread = _by_label(student, spread_rows(matrix, student, sentence, size))
    column_ids = _by_label(teacher, {int(i) for row in spread for i in matrix.indices[row] if i >= 0})
    rows = spread + exact_rows(matrix, column_ids)
    weights = np.zeros((len(rows), len(column_ids)))
    for r, row in enumerate(rows):
        for teacher_id, weight in zip(matrix.indices[row], matrix.weights[row], strict=True):
            if teacher_id in column_ids:
                weights[r, column_ids.index(teacher_id)] += weight
    return Corner(labels(student, rows), labels(teacher, column_ids), weights)


def _by_label(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """Tokens as one looks them up: short ones first, then by what they stand for."""
    return sorted(ids, key=lambda token_id: (len(tokenizer.token_bytes(token_id)), tokenizer.token_bytes(token_id)))


def spread_rows(matrix: ProjectionMatrix, student: Tokenizer, sentence: str, size: int) -> list[int]:
    """Student ids whose row has several entries, numerals if there are any: the sentence's, then evenly spaced."""
    several = np.flatnonzero((matrix.indices >= 0).sum(axis=1) > 1).tolist()
    numerals = [row for row in several if student.token_bytes(row).isdigit()]
    candidates = sorted(numerals, key=lambda row: (len(student.token_bytes(row)), row)) or several
    in_sentence = [row for row in dict.fromkeys(student.encode(sentence).ids.tolist()) if row in set(candidates)]
    others = [row for row in evenly_spaced(candidates, size) if row not in in_sentence]
    return (in_sentence + others)[:size]


def evenly_spaced(items: list[int], count: int) -> list[int]:
    """`count` of the items, or all where there are fewer."""
    if len(items) <= count:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def exact_rows(matrix: ProjectionMatrix, column_ids: list[int]) -> list[int]:
    """For each teacher token, the student token of the same bytes, where there is one."""
    exact = matrix.exact_rows & np.isin(matrix.indices[:, 0], column_ids)
    found = {int(matrix.indices[row, 0]): int(row) for row in np.flatnonzero(exact)[::-1]}
    return [found[teacher_id] for teacher_id in column_ids if teacher_id in found]


def labels(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[Token, ...]:
    """Tokens with their bytes made visible."""
    return tuple(Token(visible(tokenizer.token_bytes(token_id)), token_id) for token_id in ids)
