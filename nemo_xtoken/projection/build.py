"""Build W in two passes: equal bytes or equal role, then the teacher's own encoding of the student's token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import require
from nemo_xtoken.projection.entries import Entries, heaviest, spread
from nemo_xtoken.projection.matrix import NO_TOKEN, ProjectionMatrix
from nemo_xtoken.projection.piece_table import PieceTable
from nemo_xtoken.projection.pieces import Pieces, byte_vocabulary, token_pieces
from nemo_xtoken.projection.special_pairs import special_partners
from nemo_xtoken.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class BuildOptions:
    """What decides W besides the two tokenizers; see `build`.

    Raises ConfigError for top_k < 1, beta that is not positive and finite, or gamma outside [0, 1].
    """

    top_k: int = 4
    beta: float = 0.9
    gamma: float = 0.1
    reverse_pass: bool = False

    def __post_init__(self) -> None:
        require(
            self.top_k >= 1 and 0 < self.beta < inf and 0 <= self.gamma <= 1,
            "expected top_k >= 1, a finite beta > 0 and gamma in [0, 1], "
            f"got top_k {self.top_k}, beta {self.beta}, gamma {self.gamma}",
        )


def build(
    student: Tokenizer,
    teacher: Tokenizer,
    top_k: int = 4,
    beta: float = 0.9,
    gamma: float = 0.1,
    reverse_pass: bool = False,
) -> ProjectionMatrix:
    """W for a pair of tokenizers (X-Token, arXiv 2605.21699).

    Pass 1: W[s, t] = 1 where the tokens' bytes are equal, or two special tokens stand for the same. Of one tokenizer on
    both sides each token is its own partner, also where several have the same bytes: W is the identity.
    Pass 2, for the rest: the teacher encodes the student token as tau_0, tau_1, ...; W[s, tau_i] gains beta·gamma^i.
    Reverse pass, an option: a teacher token t that has no weight after these is encoded by the student as sigma_0,
    sigma_1, ...; W[sigma_i, t] gains beta·gamma^i, but for the rows of pass 1. A teacher token all of whose sigma are
    such rows stays without weight.
    The top_k largest of a row stay and are normalised. A token that is not valid UTF-8 alone is cut into the other
    side's tokens by bytes. What remains is empty, see `empty_rows`. Raises ConfigError for wrong options.
    """
    options = BuildOptions(top_k, beta, gamma, reverse_pass)
    pair = _Pair(student, teacher)
    indices, weights = pair.matrix(options)
    return ProjectionMatrix(
        indices=indices,
        weights=weights,
        teacher_vocab_size=teacher.vocab_size,
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        student_spec=student.spec,
        teacher_spec=teacher.spec,
        exact=(pair.partners != NO_TOKEN) & pair.own_rows(),
        beta=beta,
        gamma=gamma,
        reverse_pass=reverse_pass,
        pieces=pair.pieces(),
        teacher_pieces=pair.teacher_pieces(),
    )


def exact_partners(
    student: Tokenizer, teacher: Tokenizer, teacher_ids: Mapping[bytes, int] | None = None
) -> NDArray[np.int32]:
    """[V_S] int32, the teacher token that each student token equals, -1 for none: pass 1 of `build`."""
    if student.fingerprint == teacher.fingerprint:
        used = has_bytes(student)
        used[list(student.special_roles)] = True
        return np.where(used, np.arange(student.vocab_size, dtype=np.int32), NO_TOKEN)
    known = byte_vocabulary(teacher) if teacher_ids is None else teacher_ids
    tokens = map(student.token_bytes, range(student.vocab_size))
    partners = np.fromiter((known.get(token, NO_TOKEN) for token in tokens), np.int32, student.vocab_size)
    partners[list(student.special_roles)] = NO_TOKEN
    pairs = special_partners(student.special_roles, teacher.special_roles)
    partners[list(pairs)] = list(pairs.values())
    return partners


def has_bytes(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """[V] bool, False for special and unused ids."""
    ids = range(tokenizer.vocab_size)
    return np.fromiter((bool(tokenizer.token_bytes(token_id)) for token_id in ids), np.bool_, len(ids))


def own_ids(tokenizer: Tokenizer, vocabulary: Mapping[bytes, int] | None = None) -> NDArray[np.bool_]:
    """[V] bool, False for an id whose bytes the tokenizer writes as another id, and for unused ids."""
    own = np.zeros(tokenizer.vocab_size, np.bool_)
    own[list((byte_vocabulary(tokenizer) if vocabulary is None else vocabulary).values())] = True
    own[list(tokenizer.special_roles)] = True
    return own


class _Pair:
    """Both tokenizers with the id of each byte string, and what pass 1 makes of them."""

    def __init__(self, student: Tokenizer, teacher: Tokenizer) -> None:
        self.student, self.teacher = student, teacher
        self.student_ids, self.teacher_ids = byte_vocabulary(student), byte_vocabulary(teacher)
        self.partners = exact_partners(student, teacher, self.teacher_ids)
        self.others = np.flatnonzero((self.partners == NO_TOKEN) & has_bytes(student))
        self.others_pieces = token_pieces(teacher, self.teacher_ids, _bytes_of(student, self.others))

    def own_rows(self) -> NDArray[np.bool_]:
        return own_ids(self.student, self.student_ids)

    def matrix(self, options: BuildOptions) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """indices and weights of W, both [V_S, K]; see `heaviest`."""
        entries = self._exact().then(self._forward(options))
        shape = (self.student.vocab_size, self.teacher.vocab_size)
        indices, weights = heaviest(entries, shape, options.top_k)
        if not options.reverse_pass:
            return indices, weights
        missed = np.setdiff1d(np.array(list(self.teacher_ids.values()), np.int64), indices)
        return heaviest(entries.then(self._backward(missed, options)), shape, options.top_k)

    def _exact(self) -> Entries:
        rows = np.flatnonzero(self.partners != NO_TOKEN)
        return Entries(rows, self.partners[rows].astype(np.int64), np.ones(len(rows)))

    def _forward(self, options: BuildOptions) -> Entries:
        return spread(self.others, self.others_pieces, options.beta, options.gamma)

    def pieces(self) -> PieceTable:
        """What each student token is to the teacher: its partner, or what the teacher makes of its bytes."""
        return _table(self.partners, self.others, self.others_pieces)

    def teacher_pieces(self) -> PieceTable:
        """What each teacher token is to the student, likewise."""
        partners = exact_partners(self.teacher, self.student, self.student_ids)
        others = np.flatnonzero((partners == NO_TOKEN) & has_bytes(self.teacher))
        return _table(partners, others, token_pieces(self.student, self.student_ids, _bytes_of(self.teacher, others)))

    def _backward(self, missed: NDArray[np.int64], options: BuildOptions) -> Entries:
        pieces = token_pieces(self.student, self.student_ids, _bytes_of(self.teacher, missed))
        entries = spread(missed, pieces, options.beta, options.gamma)
        transposed = Entries(entries.columns, entries.rows, entries.weights)
        return transposed.where(self.partners[transposed.rows] == NO_TOKEN)


def _table(partners: NDArray[np.int32], others: NDArray[np.int64], others_pieces: Sequence[Pieces]) -> PieceTable:
    """The partner of each token, or the pieces of one of the `others`, ascending, which have none."""
    is_paired = partners != NO_TOKEN
    lengths = is_paired.astype(np.int64)
    lengths[others] = np.fromiter(map(len, others_pieces), np.int64, len(others))
    ends = lengths.cumsum()
    ids, is_partner = np.empty(lengths.sum(), np.int32), np.zeros(lengths.sum(), np.bool_)
    is_partner[ends[is_paired] - 1] = True
    ids[is_partner] = partners[is_paired]
    ids[~is_partner] = np.concatenate([np.zeros(0, np.int32), *others_pieces])
    return PieceTable(ids, ends.astype(np.int32))


def _bytes_of(tokenizer: Tokenizer, ids: NDArray[np.int64]) -> Sequence[bytes]:
    return [tokenizer.token_bytes(token_id) for token_id in ids.tolist()]
