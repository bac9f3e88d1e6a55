"""W itself: sparse rows over the teacher's vocabulary, and the tokenizer pair that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken import tokenizers
from nemo_xtoken.errors import ProjectionError, SpecError
from nemo_xtoken.projection import file
from nemo_xtoken.projection.piece_table import PieceTable
from nemo_xtoken.tokenizers import Tokenizer

BUILD_COMMAND = "nemo-xtoken projection build --student SPEC --teacher SPEC --out FILE"
ROW_SUM_TOLERANCE = 1e-5
NO_TOKEN = -1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProjectionError(message)


@dataclass(frozen=True, eq=False)
class ProjectionMatrix:
    """W [V_S, V_T] with at most K entries per row. A row sums to 1, so q = W^T p keeps mass, or it is empty.

    indices             [V_S, K] int32, teacher ids; -1 where there is no entry
    weights             [V_S, K] float32, not negative; 0 where there is no entry
    teacher_vocab_size  V_T; 0 takes the largest index + 1
    fingerprints, specs of both tokenizers; empty for a matrix that belongs to no pair
    exact               [V_S] bool, rows of pass 1: both tokens are the same bytes or have the same role. A row with one
                        entry need not be exact ("11" -> "1", "1"). None: every row of one entry
    beta, gamma         what the weights of pass 2 were built with; None where something else made them
    reverse_pass        whether teacher tokens gave weight to student tokens as well
    pieces              what each student token is to the teacher, in order; None where something else made the matrix
    teacher_pieces      what each teacher token is to the student, likewise
    Raises ProjectionError where the arrays are not such a matrix.
    """

    indices: NDArray[np.int32]
    weights: NDArray[np.float32]
    teacher_vocab_size: int = 0
    student_fingerprint: str = ""
    teacher_fingerprint: str = ""
    student_spec: str = ""
    teacher_spec: str = ""
    exact: NDArray[np.bool_] | None = None
    beta: float | None = None
    gamma: float | None = None
    reverse_pass: bool = False
    pieces: PieceTable | None = None
    teacher_pieces: PieceTable | None = None

    def __post_init__(self) -> None:
        self._check_arrays()
        if not self.teacher_vocab_size:
            object.__setattr__(self, "teacher_vocab_size", int(self.indices.max(initial=NO_TOKEN)) + 1)
        self._check_entries()
        self._check_exact()
        self._check_pieces()

    def _check_arrays(self) -> None:
        for name, array, dtype in (("indices", self.indices, np.int32), ("weights", self.weights, np.float32)):
            _require(
                array.ndim == 2 and array.shape[1] > 0 and array.dtype == dtype,
                f"{name} of a projection must be [V_S, K > 0] {np.dtype(dtype)}, got {list(array.shape)} {array.dtype}",
            )
        _require(
            self.indices.shape == self.weights.shape,
            f"indices {list(self.indices.shape)} and weights {list(self.weights.shape)} must have one shape",
        )

    def _check_entries(self) -> None:
        low, high = int(self.indices.min(initial=0)), int(self.indices.max(initial=NO_TOKEN))
        _require(
            low >= NO_TOKEN and high < self.teacher_vocab_size,
            f"teacher ids must be -1 or below teacher_vocab_size {self.teacher_vocab_size}, got {low} to {high}",
        )
        _require(bool(np.all(self.weights >= 0)), "weights of a projection must be numbers and not negative")
        _require(not self.weights[self.indices == NO_TOKEN].any(), "weights must be 0 where the index is -1")
        sums = self.weights.sum(axis=1, dtype=np.float64)
        wrong = np.flatnonzero((np.abs(sums - 1) > ROW_SUM_TOLERANCE) & (self.indices != NO_TOKEN).any(axis=1))
        if len(wrong):
            raise ProjectionError(
                f"rows of a projection must sum to 1 or be empty, row {wrong[0]} sums to {sums[wrong[0]]:.6g}"
            )

    def _check_exact(self) -> None:
        if self.exact is None:
            return
        _require(
            self.exact.shape == (self.student_vocab_size,) and self.exact.dtype == np.bool_,
            f"exact must be [{self.student_vocab_size}] bool, got {list(self.exact.shape)} {self.exact.dtype}",
        )
        _require(bool(np.all(self._single_entry_rows()[self.exact])), "an exact row must have one entry")

    def _check_pieces(self) -> None:
        sizes = self.student_vocab_size, self.teacher_vocab_size
        for table, (tokens, others) in ((self.pieces, sizes), (self.teacher_pieces, sizes[::-1])):
            if table is None:
                continue
            rows, highest = len(table.ends), int(table.ids.max(initial=NO_TOKEN))
            _require(
                rows == tokens and highest < others,
                f"pieces must be of {tokens} tokens and below {others}, got {rows} tokens, ids up to {highest}",
            )

    def _single_entry_rows(self) -> NDArray[np.bool_]:
        return (self.indices != NO_TOKEN).sum(axis=1) == 1

    @property
    def student_vocab_size(self) -> int:
        """V_S, the number of rows."""
        return self.indices.shape[0]

    @property
    def exact_rows(self) -> NDArray[np.bool_]:
        """[V_S] bool, True where the row is an exact pair."""
        return self._single_entry_rows() if self.exact is None else self.exact

    @property
    def empty_rows(self) -> NDArray[np.bool_]:
        """[V_S] bool, True where a student token stands for no teacher token."""
        return (self.indices == NO_TOKEN).all(axis=1)

    @property
    def num_exact(self) -> int:
        """Number of exact rows."""
        return int(self.exact_rows.sum())

    @property
    def num_empty(self) -> int:
        """Number of empty rows."""
        return int(self.empty_rows.sum())

    def first_pieces(self) -> ProjectionMatrix:
        """W with the first piece of each token alone: what it gives is the distribution of the first piece.

        Raises ProjectionError where the pieces are not known.
        """
        first = self._known_pieces()[0].first
        indices, weights = first.astype(np.int32)[:, None], (first != NO_TOKEN).astype(np.float32)[:, None]
        exact = self.exact_rows & (first != NO_TOKEN)
        return replace(self, indices=indices, weights=weights, exact=exact, beta=None, gamma=None, reverse_pass=False)

    def folded_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Teacher tokens that no student token begins with, ascending, and the one that each counts as; [folded] twice.

        That is the first piece of the first student token that it is made of: both begin with its bytes. Teacher tokens
        that begin with nothing a student token begins with are left out. Raises ProjectionError as `first_pieces`.
        """
        pieces, teacher_pieces = self._known_pieces()
        begins_with = teacher_pieces.first
        target = np.where(begins_with == NO_TOKEN, NO_TOKEN, pieces.first[begins_with])
        target[pieces.first[pieces.first != NO_TOKEN]] = NO_TOKEN
        folded = np.flatnonzero(target != NO_TOKEN)
        return folded, target[folded]

    def _known_pieces(self) -> tuple[PieceTable, PieceTable]:
        if self.pieces is None or self.teacher_pieces is None:
            raise ProjectionError(
                f"this projection does not say which pieces the tokens have; build it again: `{BUILD_COMMAND}`"
            )
        return self.pieces, self.teacher_pieces

    def to_dense(self) -> NDArray[np.float32]:
        """W as [V_S, V_T] float32: for small vocabularies only."""
        dense = np.zeros((self.student_vocab_size, self.teacher_vocab_size), np.float32)
        rows, slots = np.nonzero(self.indices != NO_TOKEN)
        np.add.at(dense, (rows, self.indices[rows, slots]), self.weights[rows, slots])
        return dense

    def check_pair(self, student_fingerprint: str, teacher_fingerprint: str) -> None:
        """Raise ProjectionError, naming the side that differs, unless W was built for these two tokenizers."""
        mine = (self.student_fingerprint, self.teacher_fingerprint)
        if mine == (student_fingerprint, teacher_fingerprint):
            return
        if mine == (teacher_fingerprint, student_fingerprint):
            problem = "student and teacher are swapped"
        else:
            sides = (
                ("student", self.student_spec, self.student_fingerprint, student_fingerprint),
                ("teacher", self.teacher_spec, self.teacher_fingerprint, teacher_fingerprint),
            )
            problem = "; ".join(_difference(*side) for side in sides if side[2] != side[3])
        raise ProjectionError(
            f"projection of another tokenizer pair: {problem}; build the right one with `{BUILD_COMMAND}`"
        )

    def load_pair(self, student: str | None = None, teacher: str | None = None) -> tuple[Tokenizer, Tokenizer]:
        """Both tokenizers: from the specs given, which say where they are now, else from those that W was built with.

        Raises TokenizerError for a spec that is given, ProjectionError for one of W's own or for tokenizers of another
        pair.
        """
        pair = (
            tokenizers.load(student) if student else _load_known("student", self.student_spec),
            tokenizers.load(teacher) if teacher else _load_known("teacher", self.teacher_spec),
        )
        self.check_pair(pair[0].fingerprint, pair[1].fingerprint)
        return pair

    def save(self, path: str | Path) -> None:
        """Write the file of this matrix (see `file`), whole or not at all."""
        arrays: file.Arrays = {"indices": self.indices, "weights": self.weights, "exact": self.exact_rows}
        for name, table in (("", self.pieces), ("teacher_", self.teacher_pieces)):
            if table is not None:
                arrays |= {f"{name}pieces": table.ids, f"{name}piece_ends": table.ends}
        description: dict[str, file.Value] = {name: getattr(self, name) for name in file.DESCRIPTION}
        file.write(path, arrays, description)

    @classmethod
    def load(cls, path: str | Path) -> ProjectionMatrix:
        """Read a file made by `save`. Raises ProjectionError if it is missing, damaged or of another schema."""
        arrays, description = file.read(path)
        try:
            tables = {
                f"{name}pieces": PieceTable(arrays.pop(f"{name}pieces"), arrays.pop(f"{name}piece_ends"))
                for name in ("", "teacher_")
                if f"{name}pieces" in arrays
            }
            return cls(**arrays, **description, **tables)  # pyright: ignore[reportArgumentType]
        except ProjectionError as error:
            raise ProjectionError(f"{path}: {error}") from error


def _load_known(side: str, spec: str) -> Tokenizer:
    try:
        return tokenizers.load(spec)
    except SpecError as error:  # the file's fault, not that of who names the file
        raise ProjectionError(
            f"the {side} tokenizer that this projection was built with is gone ({error}); put it back or say its place"
        ) from error


def _difference(side: str, spec: str, built_for: str, expected: str) -> str:
    built = f"{spec or 'a tokenizer without a name'} (fingerprint {built_for[:12] or 'unknown'})"
    return f"expected the {side} tokenizer with fingerprint {expected[:12] or 'unknown'}, got one built for {built}"
