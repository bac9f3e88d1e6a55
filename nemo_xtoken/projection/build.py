"""Build W in two passes: equal bytes or equal role, then the teacher's own encoding of the student's token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection.matrix import NO_TOKEN, ProjectionMatrix
from nemo_xtoken.projection.pieces import Pieces, byte_pieces, byte_vocabulary, decode_strictly, text_pieces
from nemo_xtoken.tokenizers.protocol import Tokenizer


def build(
    student: Tokenizer, teacher: Tokenizer, top_k: int = 4, beta: float = 0.9, gamma: float = 0.1
) -> ProjectionMatrix:
    """W for a pair of tokenizers (X-Token, arXiv 2605.21699).

    Pass 1: W[s, t] = 1 where the tokens' bytes, or the special tokens' roles, are equal.
    Pass 2, for the rest: the teacher encodes the student token as tau_0, tau_1, ...; W[s, tau_i] gains beta·gamma^i;
    the top_k largest stay and are normalised. A token that is not valid UTF-8 alone is cut into the teacher's tokens by
    bytes. What remains is empty: special tokens without a partner, unused ids.
    Raises ProjectionError for top_k < 1, beta <= 0 or gamma outside [0, 1].
    """
    _check_options(top_k, beta, gamma)
    tokens = [student.token_bytes(token_id) for token_id in range(student.vocab_size)]
    teacher_ids = byte_vocabulary(teacher)
    partners = _partners(tokens, student.special_roles, teacher_ids, teacher.special_roles)
    indices, weights = _exact_entries(partners, top_k)
    rest = [row for row, token in enumerate(tokens) if token and partners[row] == NO_TOKEN]
    pieces = _teacher_pieces(teacher, teacher_ids, [tokens[row] for row in rest])
    indices[rest], weights[rest] = weigh(pieces, teacher.vocab_size, top_k, beta, gamma)
    return ProjectionMatrix(
        indices=indices,
        weights=weights,
        teacher_vocab_size=teacher.vocab_size,
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        student_spec=student.spec,
        teacher_spec=teacher.spec,
        exact=(partners != NO_TOKEN) & _own_ids(student),
        beta=beta,
        gamma=gamma,
    )


def weigh(
    pieces: Sequence[Pieces], teacher_vocab_size: int, top_k: int, beta: float, gamma: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rows of pass 2 from tau of each row: indices [rows, top_k] int32, weights [rows, top_k] float32, heaviest first.

    A piece that comes back adds to its entry. No pieces, no entries.
    """
    lengths = np.array([len(ids) for ids in pieces], np.int64)
    row = np.repeat(np.arange(len(pieces)), lengths)
    position = np.arange(len(row)) - _run_starts(lengths)
    ids = np.concatenate([*pieces, np.zeros(0, np.int32)]).astype(np.int64)
    key, first, entry = np.unique(row * teacher_vocab_size + ids, return_index=True, return_inverse=True)
    weight = np.bincount(entry.reshape(-1), beta * gamma**position, minlength=len(key)).astype(np.float64)
    return _heaviest(key // teacher_vocab_size, key % teacher_vocab_size, weight, first, (len(pieces), top_k))


def _check_options(top_k: int, beta: float, gamma: float) -> None:
    if top_k < 1 or beta <= 0 or not 0 <= gamma <= 1:
        raise ProjectionError(
            f"expected top_k >= 1, beta > 0 and gamma in [0, 1], got top_k {top_k}, beta {beta}, gamma {gamma}"
        )


def _partners(
    tokens: Sequence[bytes],
    student_roles: Mapping[int, str],
    teacher_ids: Mapping[bytes, int],
    teacher_roles: Mapping[int, str],
) -> NDArray[np.int32]:
    """[V_S] int32, the teacher token that each student token equals, -1 for none."""
    partners = np.fromiter((teacher_ids.get(token, NO_TOKEN) for token in tokens), np.int32, len(tokens))
    by_role = {role: token_id for token_id, role in sorted(teacher_roles.items(), reverse=True)}
    for token_id, role in student_roles.items():
        partners[token_id] = by_role.get(role, NO_TOKEN)
    return partners


def _own_ids(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """[V] bool, False for an id whose bytes the tokenizer writes as another id, and for unused ids."""
    own = np.zeros(tokenizer.vocab_size, np.bool_)
    own[list(byte_vocabulary(tokenizer).values())] = True
    own[list(tokenizer.special_roles)] = True
    return own


def _exact_entries(partners: NDArray[np.int32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    indices = np.full((len(partners), top_k), NO_TOKEN, np.int32)
    indices[:, 0] = partners
    return indices, (indices != NO_TOKEN).astype(np.float32)


def _teacher_pieces(teacher: Tokenizer, teacher_ids: Mapping[bytes, int], tokens: Sequence[bytes]) -> list[Pieces]:
    """The teacher's tokens for each byte string: its own encoding of text, else the longest known tokens."""
    texts = [decode_strictly(token) for token in tokens]
    encoded = iter(text_pieces(teacher, [text for text in texts if text is not None]))
    return [
        byte_pieces(teacher_ids, token) if text is None else next(encoded)
        for token, text in zip(tokens, texts, strict=True)
    ]


def _run_starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """For runs laid end to end: the start of its run for every element, [sum of lengths]."""
    return np.repeat(lengths.cumsum() - lengths, lengths)


def _heaviest(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    weight: NDArray[np.float64],
    first: NDArray[np.int64],
    shape: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The largest weights of each row, normalised; ties in the order of the text."""
    num_rows, top_k = shape
    order = np.lexsort((first, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    slot = np.arange(len(row)) - _run_starts(np.bincount(row, minlength=num_rows))
    kept = (slot < top_k) & (weight.astype(np.float32) > 0)
    indices = np.full(shape, NO_TOKEN, np.int32)
    weights = np.zeros(shape, np.float64)
    indices[row[kept], slot[kept]] = column[kept]
    weights[row[kept], slot[kept]] = weight[kept]
    sums = weights.sum(axis=1, keepdims=True)
    return indices, np.divide(weights, sums, out=weights, where=sums > 0).astype(np.float32)
