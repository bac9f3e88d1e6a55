"""A document as it is stored: the tokens of both sides, with their specials, and the chunks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment import align
from nemo_xtoken.data.layout import CHUNK_COLUMNS
from nemo_xtoken.data.sources import SourceDocument
from nemo_xtoken.errors import AlignmentError, DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import Chunks, Encoding, role_code


@dataclass(frozen=True)
class AlignedDocument:
    """Ids of both sides ([0] without a teacher), chunks [c, 5] int32 as in `layout`, and the text's UTF-8 length."""

    student: NDArray[np.int32]
    teacher: NDArray[np.int32]
    chunks: NDArray[np.int32]
    num_bytes: int


class Edges(NamedTuple):
    """The special tokens around a document on one side; None where the tokenizer has none of that role."""

    bos: int | None
    eos: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Edges:
        """The tokenizer's bos and eos."""
        return cls(role_id(tokenizer, "bos"), role_id(tokenizer, "eos"))


def align_documents(
    documents: Sequence[SourceDocument], student: Tokenizer, teacher: Tokenizer | None
) -> Iterator[AlignedDocument]:
    """The documents as [bos] text [eos] on each side, aligned; one without a token on either side is left out.

    Raises DataError with the document's place where the two encodings do not describe the same text.
    """
    texts = [document.text for document in documents]
    students = student.encode_batch(texts)
    teachers = [None] * len(texts) if teacher is None else teacher.encode_batch(texts)
    student_edges, teacher_edges = (
        Edges(None, None) if side is None else Edges.of(side) for side in (student, teacher)
    )
    for document, student_text, teacher_text in zip(documents, students, teachers, strict=True):
        num_bytes = len(document.text.encode("utf-8"))
        if not len(student_text) or (teacher_text is not None and not len(teacher_text)):
            continue
        student_full = with_edges(student_text, student_edges, num_bytes)
        if teacher_text is None:
            empty = np.empty(0, np.int32)
            yield AlignedDocument(student_full.ids, empty, empty.reshape(0, CHUNK_COLUMNS), num_bytes)
            continue
        teacher_full = with_edges(teacher_text, teacher_edges, num_bytes)
        try:
            chunks = align(student_full, teacher_full)
        except AlignmentError as error:
            raise DataError(f"{document.place}: {error}") from error
        yield AlignedDocument(student_full.ids, teacher_full.ids, chunk_table(chunks), num_bytes)


def with_edges(text: Encoding, edges: Edges, num_bytes: int) -> Encoding:
    """A whole document: [bos] text [eos]; `num_bytes` is the text's length."""

    def around(first: int, middle: NDArray[Any], last: int) -> NDArray[Any]:
        parts = ([] if edges.bos is None else [first], middle, [] if edges.eos is None else [last])
        return np.concatenate([np.asarray(part, middle.dtype) for part in parts])

    roles = np.zeros(len(text), np.uint32) if text.roles is None else text.roles
    return Encoding(
        ids=around(edges.bos or 0, text.ids, edges.eos or 0),
        starts=around(0, text.starts, num_bytes),
        ends=around(0, text.ends, num_bytes),
        roles=around(role_code("bos"), roles, role_code("eos")),
        exact=None if text.exact is None else around(1, text.exact, 1),
    )


def chunk_table(chunks: Chunks) -> NDArray[np.int32]:
    """Chunks as they are stored, [c, 5] int32."""
    columns = (chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end, chunks.exact)
    return np.stack(columns, axis=1).astype(np.int32)
