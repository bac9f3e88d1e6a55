"""The nouns of the project and its shape legend.

Shapes, everywhere:
    n, m        tokens of one text, student side and teacher side (numpy)
    c           chunks
    b           sequences of a micro batch
    s, t        padded length of a student, a teacher sequence
    h           hidden size; h_S, h_T where both occur
    V_S, V_T    rows of the student's, the teacher's head (padded vocabulary)
    rows        b*s or b*t predictor positions, flattened batch first: row = sequence * length + position
Megatron's side is [s, b, h]; pure math is [rows, vocab]. The integration transposes once.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED_LABEL = -100
"""Label of a row that predicts nothing: padding, and the last row of a sequence."""


PLACES_PER_PART = 1 << 40
"""Places of one part of the data: token i of part p is at place p * PLACES_PER_PART + i."""


def role_code(role: str) -> int:
    """A role's number in `Encoding.roles`: the same in every process and for every tokenizer; 0 is kept for text."""
    return zlib.crc32(role.encode()) or 1


@dataclass(frozen=True)
class Encoding:
    """One text as tokens, each with the bytes of the original text that it stands for.

    ids     [n] int32
    starts  [n] int64, byte offset into the text's UTF-8
    ends    [n] int64, exclusive; never decreasing, and a text token ends where the next one starts
    roles   [n] uint32 `role_code` of a special token, which covers no bytes; 0 for text. None: all text
    exact   [n] bool, False where the span is only known to lie inside the next common boundary. None: all exact
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    roles: NDArray[np.uint32] | None = None
    exact: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Chunks:
    """Runs of student and teacher tokens that cover the same bytes, in text order. All arrays [c]; ends exclusive.

    A token in no chunk is a gap: a special token without a partner of its role on the other side.
    `exact` is False where one side's spans are uncertain; such chunks stay out of the loss by default.
    """

    student_start: NDArray[np.int64]
    student_end: NDArray[np.int64]
    teacher_start: NDArray[np.int64]
    teacher_end: NDArray[np.int64]
    exact: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.exact)


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """The chunks of a micro batch in predictor rows: token i of a sequence is predicted by row i - 1.

    student_start, student_end   [c] int64, rows of [b*s], end exclusive, increasing
    teacher_start, teacher_end   [c] int64, rows of [b*t], end exclusive, increasing
    mask                         [c] bool, False for padding and for chunks that a filter leaves out of the loss
    Every run has at least one row; a chunk whose first token has no predictor is not in the table.
    """

    student_start: Tensor
    student_end: Tensor
    teacher_start: Tensor
    teacher_end: Tensor
    mask: Tensor

    def masked(self, mask: Tensor) -> ChunkRows:
        """The same chunks with another mask [c]."""
        return replace(self, mask=mask)

    def to(self, device: torch.device | str) -> ChunkRows:
        """The same chunks on another device."""
        return ChunkRows(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def valid(self) -> ChunkRows:
        """Only the chunks that count, all with mask True."""
        return ChunkRows(**{f.name: getattr(self, f.name)[self.mask] for f in fields(self)})


@dataclass(frozen=True)
class SparseLogits:
    """A teacher's answer as some of its probabilities.

    ids         [rows, count] int64, real ids, -1 where a row has fewer
    log_probs   [rows, count] float32, their natural logarithms
    vocab_size  ids that there are; what a row's entries lack to 1 is spread evenly over the others
    """

    ids: Tensor
    log_probs: Tensor
    vocab_size: int

    @classmethod
    def empty(cls, rows: int, count: int, vocab_size: int) -> SparseLogits:
        """Rows without an entry, on the CPU."""
        return cls(torch.full((rows, count), -1), torch.zeros(rows, count), vocab_size)

    def rows(self, rows: Tensor) -> SparseLogits:
        """Some of the rows: [selected] int64."""
        return replace(self, ids=self.ids.index_select(0, rows), log_probs=self.log_probs.index_select(0, rows))

    def to(self, where: torch.device | str | torch.dtype) -> SparseLogits:
        """The same on another device, or with log-probabilities of another precision."""
        ids = self.ids if isinstance(where, torch.dtype) else self.ids.to(where)
        return replace(self, ids=ids, log_probs=self.log_probs.to(where))


@dataclass(frozen=True, kw_only=True)
class DistillBatch:
    """One micro batch of aligned text, for the models and for the loss.

    student_tokens, student_position_ids   [b, s] int64; a position of 0 starts a document
    student_labels                         [b, s] int64, the next token, IGNORED_LABEL where there is none
    student_loss_mask                      [b, s] float32, weight of the row in cross-entropy (0 or 1)
    teacher_tokens, teacher_position_ids, teacher_labels   [b, t] int64
    teacher_places                         [b, t] int64, where the token lies in the prepared data, -1 for padding: the
                                           part (see PLACES_PER_PART; of a blend by its order, then validation data) and
                                           its number among all teacher tokens of the part; None where nobody asks
    chunks                                 in rows of the flattened [b*s] and [b*t]
    further                                with several teachers: the same student sequences with each of the others
    A batch without a teacher has t = 0 and no chunks.
    """

    student_tokens: Tensor
    student_position_ids: Tensor
    student_labels: Tensor
    student_loss_mask: Tensor
    teacher_tokens: Tensor
    teacher_position_ids: Tensor
    teacher_labels: Tensor
    chunks: ChunkRows
    teacher_places: Tensor | None = None
    further: tuple[DistillBatch, ...] = ()

    @property
    def pairs(self) -> tuple[DistillBatch, ...]:
        """The student with each teacher, in their order; all have the same student tensors."""
        return (replace(self, further=()), *self.further)

    def to(self, device: torch.device | str) -> DistillBatch:
        """The same batch on another device."""
        student = self._side_on(device, "student")
        first, *further = (
            DistillBatch(**student, **pair._side_on(device, "teacher"), chunks=pair.chunks.to(device))
            for pair in self.pairs
        )
        return replace(first, further=tuple(further))

    def _side_on(self, device: torch.device | str, side: str) -> dict[str, Any]:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith(side)}
        return {name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Sum:
    """A metric as sum and count, so that it can be added over blocks, micro batches and ranks before it is divided."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True)
class LossTerms:
    """A loss before its one, global division.

    numerator    scalar, differentiable
    denominator  scalar, what the numerator is divided by once it is summed over dp x cp (never over tp)
    metrics      detached sums by name
    """

    numerator: Tensor
    denominator: Tensor
    metrics: Mapping[str, Sum] = field(default_factory=dict[str, Sum])
