"""The coverage audit: how much of each class of student tokens is common with the teacher, and which loss follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from re import Pattern
from typing import Any

from nemo_xtoken.config import LossMode
from nemo_xtoken.projection.classes import CRITICAL_CLASSES, TokenClass, token_class
from nemo_xtoken.projection.empty_rows import EmptyReason, empty_rows
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.partition import common_set
from nemo_xtoken.projection.pieces import byte_vocabulary
from nemo_xtoken.tokenizers.protocol import Tokenizer

NUM_EXAMPLES = 8
_CRITICAL = "multi-digit numerals and ASCII punctuation marks"
_NO_CLASSES: Mapping[str, Pattern[str]] = {}
_NOT_TEXT = (TokenClass.SPECIAL, TokenClass.UNUSED)


@dataclass(frozen=True)
class ClassCoverage:
    """How many student tokens of a class there are, how many of them are exact pairs, and the first that are not."""

    total: int
    common: int
    uncommon_examples: tuple[str, ...] = ()

    @property
    def uncommon(self) -> int:
        """Number of tokens outside the common set."""
        return self.total - self.common

    @property
    def share(self) -> float:
        """Part of the tokens that is common, 0 to 1; 0 where there are no tokens."""
        return self.common / max(self.total, 1)


@dataclass(frozen=True)
class EmptyRows:
    """How many rows of W are empty for one reason, and the first of them."""

    total: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What W covers, and the loss mode to take. A token is common if it is in an exact pair: `common_set(matrix, 1.0)`.

    classes                                 only those that the student has, in the order of TokenClass
    user_classes                            those that the user asked for, which may overlap; they decide nothing
    num_exact, num_projected, num_empty     rows of W; they add up to its student vocabulary
    num_unreached                           teacher tokens of text that no row of W gives weight
    empty                                   the empty rows by reason; they add up to num_empty
    recommended, reason                     the loss mode, and one sentence with the numbers that decide it
    """

    student_spec: str
    teacher_spec: str
    classes: Mapping[TokenClass, ClassCoverage]
    num_exact: int
    num_projected: int
    num_empty: int
    recommended: LossMode
    reason: str
    num_unreached: int = 0
    empty: Mapping[EmptyReason, EmptyRows] = field(default_factory=dict[EmptyReason, EmptyRows])
    user_classes: Mapping[str, ClassCoverage] = field(default_factory=dict[str, ClassCoverage])

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists, for JSON."""
        classes = {
            name.value: {
                "total": coverage.total,
                "common": coverage.common,
                "critical": name in CRITICAL_CLASSES,
                "uncommon_examples": list(coverage.uncommon_examples),
            }
            for name, coverage in self.classes.items()
        }
        return {
            "student": self.student_spec,
            "teacher": self.teacher_spec,
            "exact": self.num_exact,
            "projected": self.num_projected,
            "empty": self.num_empty,
            "empty_reasons": {reason.value: asdict(rows) for reason, rows in self.empty.items()},
            "unreached_teacher_tokens": self.num_unreached,
            "classes": classes,
            "user_classes": {name: asdict(coverage) for name, coverage in self.user_classes.items()},
            "recommended": self.recommended,
            "reason": self.reason,
        }


def audit(
    matrix: ProjectionMatrix,
    student: Tokenizer,
    teacher: Tokenizer,
    user_classes: Mapping[str, Pattern[str]] = _NO_CLASSES,
) -> Audit:
    """Count the common set per class of student tokens. Critical tokens outside it call for P-KL, none for H-KL.

    user_classes  name -> the pattern that the whole text of a token has to match; a byte that is no text by itself
                  stands as U+FFFD
    Raises ProjectionError if W is of another pair.
    """
    matrix.check_pair(student.fingerprint, teacher.fingerprint)
    common = set(common_set(matrix)[0].tolist())
    members = _members(student)
    classes = {name: _coverage(student, members[name], common) for name in TokenClass if name in members}
    text_ids = [token_id for name, ids in members.items() if name not in _NOT_TEXT for token_id in ids]
    recommended, reason = recommend(classes)
    return Audit(
        student_spec=student.spec,
        teacher_spec=teacher.spec,
        classes=classes,
        num_exact=matrix.num_exact,
        num_projected=matrix.student_vocab_size - matrix.num_exact - matrix.num_empty,
        num_empty=matrix.num_empty,
        recommended=recommended,
        reason=reason,
        num_unreached=len(set(byte_vocabulary(teacher).values()).difference(matrix.indices.ravel().tolist())),
        empty={why: _empty(student, ids) for why, ids in empty_rows(matrix, student).items()},
        user_classes={
            name: _coverage(student, _matching(student, text_ids, pattern), common)
            for name, pattern in user_classes.items()
        },
    )


def recommend(classes: Mapping[TokenClass, ClassCoverage]) -> tuple[LossMode, str]:
    """The loss mode for a coverage, and why."""
    critical = {name: classes[name] for name in CRITICAL_CLASSES if name in classes}
    total = sum(coverage.total for coverage in critical.values())
    uncommon = sum(coverage.uncommon for coverage in critical.values())
    if not uncommon:
        return "h_kl", f"H-KL, because all {total} critical student tokens ({_CRITICAL}) have an exact teacher token."
    parts = ", ".join(f"{c.uncommon} of {c.total} {name.label}s" for name, c in critical.items() if c.uncommon)
    return "p_kl", f"P-KL, because a loss on common tokens would suppress what has no exact teacher token: {parts}."


def _members(student: Tokenizer) -> dict[TokenClass, list[int]]:
    """Student ids by class. An id whose bytes the tokenizer writes as another id counts as unused."""
    own = byte_vocabulary(student)
    members: dict[TokenClass, list[int]] = {}
    for token_id in range(student.vocab_size):
        token = student.token_bytes(token_id)
        if token_id in student.special_roles:
            name = TokenClass.SPECIAL
        else:
            name = token_class(token) if own.get(token) == token_id else TokenClass.UNUSED
        members.setdefault(name, []).append(token_id)
    return members


def _matching(student: Tokenizer, ids: list[int], pattern: Pattern[str]) -> list[int]:
    """Those of the ids whose whole text matches, ascending."""
    return sorted(i for i in ids if pattern.fullmatch(student.token_bytes(i).decode(errors="replace")))


def _coverage(student: Tokenizer, ids: list[int], common: set[int]) -> ClassCoverage:
    uncommon = [token_id for token_id in ids if token_id not in common]
    return ClassCoverage(len(ids), len(ids) - len(uncommon), _examples(student, uncommon))


def _empty(student: Tokenizer, ids: list[int]) -> EmptyRows:
    return EmptyRows(len(ids), _examples(student, ids))


def _examples(student: Tokenizer, ids: list[int]) -> tuple[str, ...]:
    return tuple(_text(student, token_id) for token_id in ids[:NUM_EXAMPLES])


def _text(student: Tokenizer, token_id: int) -> str:
    role = student.special_roles.get(token_id)
    return role or student.token_bytes(token_id).decode(errors="backslashreplace") or f"#{token_id}"
