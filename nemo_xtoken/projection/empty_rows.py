"""Why rows of W are empty."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.tokenizers.protocol import Tokenizer


class EmptyReason(StrEnum):
    """Why a student token stands for no teacher token; each empty row has one reason."""

    SPECIAL = "special_without_partner"
    UNUSED = "unused_id"
    UNKNOWN = "not_fillable"

    @property
    def explanation(self) -> str:
        """The reason in words, for a number of rows."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    EmptyReason.SPECIAL: "special tokens without a counterpart of their role or place in the teacher",
    EmptyReason.UNUSED: "ids that stand for no bytes: reserved or unused",
    EmptyReason.UNKNOWN: "tokens whose bytes W finds no teacher tokens for",
}


def empty_reason(student: Tokenizer, token_id: int) -> EmptyReason:
    """Why the row of a student token is empty, given that it is."""
    if token_id in student.special_roles:
        return EmptyReason.SPECIAL
    return EmptyReason.UNKNOWN if student.token_bytes(token_id) else EmptyReason.UNUSED


def empty_rows(matrix: ProjectionMatrix, student: Tokenizer) -> dict[EmptyReason, list[int]]:
    """Student ids of the empty rows by reason, ascending; only reasons that occur, in the order of EmptyReason."""
    found: dict[EmptyReason, list[int]] = {reason: [] for reason in EmptyReason}
    for token_id in np.flatnonzero(matrix.empty_rows).tolist():
        found[empty_reason(student, token_id)].append(token_id)
    return {reason: ids for reason, ids in found.items() if ids}
