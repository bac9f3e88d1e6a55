"""One token in W: what a student token stands for, and which student tokens reach a teacher token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection.empty_rows import empty_reason
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.pieces import byte_vocabulary
from nemo_xtoken.tokenizers.protocol import Tokenizer

Kind = Literal["exact", "projected", "empty", "reached", "unreached"]
_ID = re.compile(r"#0*([0-9]+)")
_MOST_DIGITS = 18
_BYTES = re.compile(r"0x([0-9A-Fa-f]{2})+(\s+0x([0-9A-Fa-f]{2})+)*")


@dataclass(frozen=True)
class NamedToken:
    """An id and the bytes it stands for; if it is special, its role and what it is called in the tokenizer's file."""

    token_id: int
    content: bytes
    role: str | None
    special_name: str | None


@dataclass(frozen=True)
class Link:
    """An entry of W, seen from one side: the token on the other side, and the weight."""

    token: NamedToken
    weight: float


@dataclass(frozen=True)
class View:
    """A token and its entries in W, heaviest first, then by id.

    kind    of a student token: exact, projected or empty; of a teacher token: reached or unreached
    reason  why there are no entries, where there are none
    """

    token: NamedToken
    kind: Kind
    links: tuple[Link, ...]
    reason: str = ""


def find_tokens(tokenizer: Tokenizer, name: str) -> list[int]:
    """The ids that a name means: `#123` that id, `0xE2 0x82` the token of these bytes, all else text.

    A text is the one token of that text, or the special tokens of that role or marker, or else the tokens that the
    tokenizer makes of it. Raises ProjectionError where there is no such token.
    """
    match = _ID.fullmatch(name)
    if match:
        ids = [int(match[1])] if len(match[1]) <= _MOST_DIGITS and int(match[1]) < tokenizer.vocab_size else []
    elif _BYTES.fullmatch(name):
        ids = _with_bytes(tokenizer, bytes.fromhex(name.replace("0x", "")))
    else:
        ids = _of_text(tokenizer, name)
    if not ids:
        raise ProjectionError(
            f"{tokenizer.spec} has no token {name!r}; expected text, bytes such as '0xE2 0x82', "
            f"or an id from #0 to #{tokenizer.vocab_size - 1}"
        )
    return ids


def student_row(matrix: ProjectionMatrix, student: Tokenizer, teacher: Tokenizer, token_id: int) -> View:
    """What a student token stands for."""
    slots = np.flatnonzero(matrix.indices[token_id] >= 0).tolist()
    indices, weights = matrix.indices[token_id], matrix.weights[token_id]
    links = [Link(named(teacher, int(indices[slot])), float(weights[slot])) for slot in slots]
    token = named(student, token_id)
    if not links:
        return View(token, "empty", (), empty_reason(student, token_id).explanation)
    return View(token, "exact" if matrix.exact_rows[token_id] else "projected", _by_weight(links))


def teacher_column(matrix: ProjectionMatrix, student: Tokenizer, teacher: Tokenizer, token_id: int) -> View:
    """Which student tokens reach a teacher token."""
    rows, slots = np.nonzero(matrix.indices == token_id)
    weights = matrix.weights[rows, slots].tolist()
    links = [Link(named(student, row), weight) for row, weight in zip(rows.tolist(), weights, strict=True)]
    token = named(teacher, token_id)
    if not links:
        return View(token, "unreached", (), "no student token reaches it")
    return View(token, "reached", _by_weight(links))


def named(tokenizer: Tokenizer, token_id: int) -> NamedToken:
    """An id with what is known about it."""
    role = tokenizer.special_roles.get(token_id)
    special_name = None if role is None else tokenizer.special_names[token_id]
    return NamedToken(token_id, tokenizer.token_bytes(token_id), role, special_name)


def _by_weight(links: list[Link]) -> tuple[Link, ...]:
    return tuple(sorted(links, key=lambda link: (-link.weight, link.token.token_id)))


def _of_text(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a byte of the command line that is no text
        return []
    called = (tokenizer.special_roles, tokenizer.special_names)
    special = sorted({token_id for names in called for token_id, name in names.items() if name == text})
    return _with_bytes(tokenizer, content) or special or tokenizer.encode(text).ids.tolist()


def _with_bytes(tokenizer: Tokenizer, content: bytes) -> list[int]:
    found = byte_vocabulary(tokenizer).get(content)
    return [] if found is None else [found]
