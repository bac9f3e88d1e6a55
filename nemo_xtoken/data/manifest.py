"""What a directory of prepared data holds and what it was made from: `manifest.json`, written last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast

from nemo_xtoken.data.layout import MANIFEST
from nemo_xtoken.data.teacher_names import DEFAULT_NAME
from nemo_xtoken.data.workspace import write_durably
from nemo_xtoken.errors import DataError

SCHEMA_VERSION = 3

ONE_TEACHER_VERSION = 2
"""The schema of data with at most one teacher, which has no name; it is read as well."""

MOST_EXAMPLES = 10
"""Reasons for skipped documents that a manifest keeps."""


COUNTS = ("documents", "empty_documents", "skipped_documents", "bytes")
TEACHER_COUNTS = ("tokens", "chunks", "one_to_one_chunks", "inexact_chunks")
"""What parts of prepared data add up to."""


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, NoneType),
    "str": (str,),
    "str | None": (str, NoneType),
    "bool": (bool,),
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One tokenizer and what it made of the text: `tokens` counts bos and eos, whose ids are None where it has none."""

    spec: str
    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    tokens: int = 0

    @property
    def padding_id(self) -> int:
        """The id that fills a sequence up; its label is always ignored."""
        return 0 if self.eos_id is None else self.eos_id


@dataclass(frozen=True, kw_only=True)
class TeacherSide(Side):
    """A teacher's side, by a name of its own, and its chunks with the student.

    shares_student_tokens  the teacher has the student's tokenizer: its tokens are the student's, and not stored again
    chunks                 all, those with one token on both sides, and those whose spans are uncertain
    """

    name: str = DEFAULT_NAME
    shares_student_tokens: bool = False
    chunks: int = 0
    one_to_one_chunks: int = 0
    inexact_chunks: int = 0

    @property
    def one_to_one_share(self) -> float:
        """Share of chunks with one token on both sides."""
        return self.one_to_one_chunks / max(self.chunks, 1)

    @property
    def inexact_share(self) -> float:
        """Share of chunks whose spans are uncertain."""
        return self.inexact_chunks / max(self.chunks, 1)


AnySide = TypeVar("AnySide", bound=Side)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that documents were read from."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of prepared data.

    teachers            in the order of their files; none: student tokens only
    text_key            the key or column of what is learnt
    prompt_key          that of what comes before it and is not learnt; None: all text is learnt
    documents           documents kept; `empty_documents` more had no text and were left out
    skipped_documents   documents and files that could not be used, with the first reasons in `skipped_examples`
    bytes               UTF-8 bytes of the documents
    reused              whether `prepare` found the data already there; not stored
    """

    student: Side
    teachers: tuple[TeacherSide, ...]
    text_key: str
    prompt_key: str | None = None
    sources: tuple[SourceFile, ...]
    documents: int = 0
    empty_documents: int = 0
    skipped_documents: int = 0
    skipped_examples: tuple[str, ...] = ()
    bytes: int = 0
    schema_version: int = SCHEMA_VERSION
    reused: bool = field(default=False, compare=False)

    @property
    def teacher(self) -> TeacherSide | None:
        """The teacher of data with at most one. Raises DataError where there are several."""
        if len(self.teachers) > 1:
            raise DataError(f"expected data of one teacher, got several: {', '.join(self.teacher_names)}")
        return self.teachers[0] if self.teachers else None

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The names of all teachers, in their order."""
        return tuple(teacher.name for teacher in self.teachers)

    def same_inputs(self, other: Manifest) -> bool:
        """Whether both come from the same text, in the same order, and the same tokenizers, whatever their paths."""
        return self.inputs == other.inputs

    @property
    def inputs(self) -> str:
        """What decides the prepared tokens, as JSON. A fingerprint covers the special tokens as well.

        The name of a single teacher decides nothing; several are told apart by theirs.
        """
        teachers = [(teacher.fingerprint, teacher.vocab_size) for teacher in self.teachers]
        several = [(teacher.name, teacher.fingerprint, teacher.vocab_size) for teacher in self.teachers]
        sides = [(self.student.fingerprint, self.student.vocab_size)]
        sides += (teachers or [None]) if len(teachers) < 2 else several
        hashes = [(source.bytes, source.sha256) for source in self.sources]
        return json.dumps([ONE_TEACHER_VERSION, sides, self.text_key, self.prompt_key, hashes])

    def plus(self, other: Manifest) -> Manifest:
        """With the counts of another part of the same data added."""
        teachers = zip(self.teachers, other.teachers, strict=True)
        return replace(
            self,
            student=_added(self.student, other.student, ("tokens",)),
            teachers=tuple(_added(ours, theirs, TEACHER_COUNTS) for ours, theirs in teachers),
            skipped_examples=(*self.skipped_examples, *other.skipped_examples)[:MOST_EXAMPLES],
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTS},
        )

    def save(self, directory: Path) -> None:
        """Write `manifest.json` into the directory."""
        content = asdict(self)
        del content["reused"]
        write_durably(directory / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read `manifest.json` of the directory. Raises DataError where it is missing, damaged or of another schema."""
        path = directory / MANIFEST
        if not path.is_file():
            raise DataError(
                f"{directory} has no {MANIFEST}: it is not prepared data, or not complete; run data prepare"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}; prepare the data again") from error
        found = cast("dict[str, Any]", content).get("schema_version") if isinstance(content, dict) else None
        if found not in (SCHEMA_VERSION, ONE_TEACHER_VERSION):
            raise DataError(
                f"{path} has schema version {found}, expected {ONE_TEACHER_VERSION} or {SCHEMA_VERSION}; "
                "prepare the data again"
            )
        return _parse(cast("dict[str, Any]", content), path)


AnyPart = TypeVar("AnyPart", Side, TeacherSide, SourceFile, Manifest)


def _added(ours: AnySide, theirs: AnySide, names: Sequence[str]) -> AnySide:
    return replace(ours, **{name: getattr(ours, name) + getattr(theirs, name) for name in names})


def _parse(content: Mapping[str, Any], path: Path) -> Manifest:
    try:
        if content["schema_version"] == ONE_TEACHER_VERSION:
            content = _with_named_teacher(content)
        _check_keys(content, path)
        nested: dict[str, Any] = {
            "student": _checked(Side(**content["student"])),
            "teachers": tuple(_checked(TeacherSide(**teacher)) for teacher in content["teachers"]),
            "sources": tuple(_checked(SourceFile(**source)) for source in content["sources"]),
            "skipped_examples": tuple(map(str, content["skipped_examples"])),
        }
        return _checked(Manifest(**{**content, **nested}))
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data again") from error


def _checked(made: AnyPart) -> AnyPart:
    """A part of a manifest whose plain values are of their types. Raises TypeError."""
    for each in fields(made):
        kinds, value = _KINDS.get(str(each.type)), getattr(made, each.name)
        if kinds and type(value) not in kinds:
            raise TypeError(f"{each.name}: expected {each.type}, got {value!r}")
        if type(value) is int and value < 0:
            raise TypeError(f"{each.name}: expected a number of at least 0, got {value}")
    return made


def _with_named_teacher(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A manifest of ONE_TEACHER_VERSION as one of SCHEMA_VERSION: there the chunks were those of the one teacher."""
    rest = dict(content)
    teacher, *counts = (rest.pop(name) for name in ("teacher", *TEACHER_COUNTS[1:]))
    teachers = [] if teacher is None else [{**teacher, **dict(zip(TEACHER_COUNTS[1:], counts, strict=True))}]
    return {**rest, "teachers": teachers, "schema_version": SCHEMA_VERSION}


def _check_keys(content: Mapping[str, Any], path: Path) -> None:
    expected = {f.name for f in fields(Manifest)} - {"reused"}
    if set(content) != expected:
        raise DataError(
            f"{path} should hold {', '.join(sorted(expected))}, got {', '.join(sorted(content))}; prepare again"
        )
