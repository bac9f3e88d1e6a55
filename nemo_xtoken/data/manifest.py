"""What a directory of prepared data holds and what it was made from: `manifest.json`, written last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from nemo_xtoken.data.layout import MANIFEST
from nemo_xtoken.errors import DataError

SCHEMA_VERSION = 2

MOST_EXAMPLES = 10
"""Reasons for skipped documents that a manifest keeps."""


COUNTS = (
    "documents",
    "empty_documents",
    "skipped_documents",
    "bytes",
    "chunks",
    "one_to_one_chunks",
    "inexact_chunks",
)
"""What parts of prepared data add up to."""


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
class SourceFile:
    """A file that documents were read from."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of prepared data.

    text_key            the key or column of what is learnt
    prompt_key          that of what comes before it and is not learnt; None: all text is learnt
    documents           documents kept; `empty_documents` more had no text and were left out
    skipped_documents   documents and files that could not be used, with the first reasons in `skipped_examples`
    bytes               UTF-8 bytes of the documents
    chunks              all, those with one token on both sides, and those whose spans are uncertain
    reused              whether `prepare` found the data already there; not stored
    """

    student: Side
    teacher: Side | None
    text_key: str
    prompt_key: str | None = None
    sources: tuple[SourceFile, ...]
    documents: int = 0
    empty_documents: int = 0
    skipped_documents: int = 0
    skipped_examples: tuple[str, ...] = ()
    bytes: int = 0
    chunks: int = 0
    one_to_one_chunks: int = 0
    inexact_chunks: int = 0
    schema_version: int = SCHEMA_VERSION
    reused: bool = field(default=False, compare=False)

    @property
    def one_to_one_share(self) -> float:
        """Share of chunks with one token on both sides."""
        return self.one_to_one_chunks / max(self.chunks, 1)

    @property
    def inexact_share(self) -> float:
        """Share of chunks whose spans are uncertain."""
        return self.inexact_chunks / max(self.chunks, 1)

    def same_inputs(self, other: Manifest) -> bool:
        """Whether both come from the same text, in the same order, and the same tokenizers, whatever their paths."""
        return self.inputs == other.inputs

    @property
    def inputs(self) -> str:
        """What decides the prepared tokens, as JSON. A fingerprint covers the special tokens as well."""
        sides = (self.student, self.teacher)
        fingerprints = [None if side is None else (side.fingerprint, side.vocab_size) for side in sides]
        hashes = [(source.bytes, source.sha256) for source in self.sources]
        return json.dumps([SCHEMA_VERSION, fingerprints, self.text_key, self.prompt_key, hashes])

    def plus(self, other: Manifest) -> Manifest:
        """With the counts of another part of the same data added."""
        teacher = None
        if self.teacher is not None and other.teacher is not None:
            teacher = replace(self.teacher, tokens=self.teacher.tokens + other.teacher.tokens)
        return replace(
            self,
            student=replace(self.student, tokens=self.student.tokens + other.student.tokens),
            teacher=teacher,
            skipped_examples=(*self.skipped_examples, *other.skipped_examples)[:MOST_EXAMPLES],
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTS},
        )

    def save(self, directory: Path) -> None:
        """Write `manifest.json` into the directory."""
        content = asdict(self)
        del content["reused"]
        (directory / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

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
        if found != SCHEMA_VERSION:
            raise DataError(f"{path} has schema version {found}, expected {SCHEMA_VERSION}; prepare the data again")
        return _parse(cast("dict[str, Any]", content), path)


def _parse(content: Mapping[str, Any], path: Path) -> Manifest:
    expected = {f.name for f in fields(Manifest)} - {"reused"}
    if set(content) != expected:
        raise DataError(
            f"{path} should hold {', '.join(sorted(expected))}, got {', '.join(sorted(content))}; prepare again"
        )
    try:
        nested: dict[str, Any] = {
            "student": Side(**content["student"]),
            "teacher": None if content["teacher"] is None else Side(**content["teacher"]),
            "sources": tuple(SourceFile(**source) for source in content["sources"]),
            "skipped_examples": tuple(content["skipped_examples"]),
        }
    except TypeError as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data again") from error
    return Manifest(**{**content, **nested})
