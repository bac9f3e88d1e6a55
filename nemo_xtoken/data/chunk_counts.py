"""What alignment makes of a text: its chunks by kind, and the part of it that a loss will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.aligned import AlignedDocument, align_documents
from nemo_xtoken.data.reading import BadDocument, Fields, SourceDocument
from nemo_xtoken.data.shards import cut_sources
from nemo_xtoken.data.sources import find_sources, read_slice
from nemo_xtoken.errors import DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text that is held and tokenized at a time."""


@dataclass(frozen=True, kw_only=True)
class ChunkCounts:
    """Counts over documents, each as [bos] text [eos] on both sides. An inexact chunk is of no other kind.

    empty_documents  those without tokens on one side or both, which are no `documents`
    one_to_many  chunks of one student and several teacher tokens; many_to_one the other way round
    *_gaps       tokens in no chunk
    seen         chunks that count in a loss: exact, with a predictor on both sides; *_seen_tokens in them
    """

    documents: int = 0
    empty_documents: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    chunks: int = 0
    one_to_one: int = 0
    one_to_many: int = 0
    many_to_one: int = 0
    many_to_many: int = 0
    inexact: int = 0
    student_gaps: int = 0
    teacher_gaps: int = 0
    seen: int = 0
    student_seen_tokens: int = 0
    teacher_seen_tokens: int = 0

    def __add__(self, other: ChunkCounts) -> ChunkCounts:
        return ChunkCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    @classmethod
    def of(cls, document: AlignedDocument) -> ChunkCounts:
        """Of one document and its one teacher."""
        (teacher,) = document.teachers
        table = teacher.chunks.astype(np.int64)
        student, in_teacher, exact = table[:, 1] - table[:, 0], table[:, 3] - table[:, 2], table[:, 4] != 0
        single_student, single_teacher = student == 1, in_teacher == 1
        seen = exact & (table[:, 0] > 0) & (table[:, 2] > 0)

        def count(kind: NDArray[np.bool_]) -> int:
            return int(np.count_nonzero(exact & kind))

        return cls(
            documents=1,
            student_tokens=len(document.student),
            teacher_tokens=len(teacher.ids),
            chunks=len(table),
            one_to_one=count(single_student & single_teacher),
            one_to_many=count(single_student & ~single_teacher),
            many_to_one=count(~single_student & single_teacher),
            many_to_many=count(~single_student & ~single_teacher),
            inexact=len(table) - int(exact.sum()),
            student_gaps=len(document.student) - int(student.sum()),
            teacher_gaps=len(teacher.ids) - int(in_teacher.sum()),
            seen=int(seen.sum()),
            student_seen_tokens=int(student[seen].sum()),
            teacher_seen_tokens=int(in_teacher[seen].sum()),
        )


def count_chunks(
    sources: Sequence[str | Path], student: Tokenizer, teacher: Tokenizer, *, text_key: str = "text"
) -> ChunkCounts:
    """Align the documents of the sources, as `prepare` does, and count. Raises DataError for bad or empty input."""
    counts = ChunkCounts()
    for batch in _batches(sources, student, text_key):
        for document in align_documents(batch, student, [teacher]):
            if isinstance(document, BadDocument):
                raise DataError(document.reason)
            counts += ChunkCounts(empty_documents=1) if document is None else ChunkCounts.of(document)
    if not counts.documents:
        raise DataError(
            f"expected text in {', '.join(map(str, sources))}, got none: {counts.empty_documents} documents, "
            "all of them without tokens on one side or both"
        )
    return counts


def _batches(sources: Sequence[str | Path], student: Tokenizer, text_key: str) -> Iterator[list[SourceDocument]]:
    batch: list[SourceDocument] = []
    held = 0
    for document in _documents(sources, Fields(text_key, None, student)):
        batch.append(document)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _documents(sources: Sequence[str | Path], fields: Fields) -> Iterator[SourceDocument]:
    work = cut_sources(find_sources(sources), _refuse, threads=1)
    for shard in work.shards:
        for part in shard.slices:
            for document in read_slice(part, fields):
                if isinstance(document, BadDocument):
                    raise DataError(document.reason)
                yield document


def _refuse(reason: str) -> None:
    raise DataError(reason)
