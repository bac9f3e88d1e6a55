"""A document as it is stored: the tokens of both sides, with their specials, and the chunks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment import align
from nemo_xtoken.data.layout import CHUNK_COLUMNS
from nemo_xtoken.data.reading import BadDocument, SourceDocument
from nemo_xtoken.errors import AlignmentError, XTokenError
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import Chunks, Encoding, role_code


@dataclass(frozen=True)
class AlignedDocument:
    """Ids of both sides ([0] without a teacher), chunks [c, 5] int32 as in `layout`, and what is learnt of it.

    num_bytes   UTF-8 bytes of the whole text
    loss_start  the first student token that begins in what is learnt
    loss_bytes  UTF-8 bytes from that token on
    """

    student: NDArray[np.int32]
    teacher: NDArray[np.int32]
    chunks: NDArray[np.int32]
    num_bytes: int
    loss_start: int
    loss_bytes: int


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
) -> Iterator[AlignedDocument | BadDocument | None]:
    """Each document as [bos] prompt and text [eos] on each side, aligned; None for one without a token on either side.

    A document that a tokenizer refuses, or whose two encodings do not describe the same text, is a BadDocument.
    """
    contents = [document.prompt + document.text for document in documents]
    try:
        students = _student_encodings(documents, contents, student)
        teachers = [None] * len(contents) if teacher is None else teacher.encode_batch(contents)
    except XTokenError as error:
        if len(documents) > 1:
            for document in documents:
                yield from align_documents([document], student, teacher)
        else:
            yield BadDocument(f"{documents[0].place}: {error}")
        return
    edges = Edges.of(student), None if teacher is None else Edges.of(teacher)
    for document, content, ours, theirs in zip(documents, contents, students, teachers, strict=True):
        try:
            yield _aligned(document, len(content.encode()), ours, theirs, *edges)
        except AlignmentError as error:
            yield BadDocument(f"{document.place}: {error}")


def _student_encodings(
    documents: Sequence[SourceDocument], contents: Sequence[str], student: Tokenizer
) -> Sequence[Encoding]:
    """Those that the source holds, and for the other documents new ones."""
    missing = [content for document, content in zip(documents, contents, strict=True) if document.student is None]
    encoded = iter(student.encode_batch(missing) if missing else ())
    return [next(encoded) if document.student is None else document.student for document in documents]


def _aligned(
    document: SourceDocument,
    num_bytes: int,
    student_text: Encoding,
    teacher_text: Encoding | None,
    student_edges: Edges,
    teacher_edges: Edges | None,
) -> AlignedDocument | None:
    if not len(student_text) or (teacher_text is not None and not len(teacher_text)):
        return None
    student = with_edges(student_text, student_edges, num_bytes)
    border = len(document.prompt.encode())
    loss_start = int(np.searchsorted(student.starts, border)) if border else 0
    loss_bytes = num_bytes - (int(student.starts[loss_start]) if loss_start < len(student) else num_bytes)
    teacher_ids, chunks = np.empty(0, np.int32), np.empty((0, CHUNK_COLUMNS), np.int32)
    if teacher_text is not None and teacher_edges is not None:
        teacher = with_edges(teacher_text, teacher_edges, num_bytes)
        teacher_ids, chunks = teacher.ids, chunk_table(align(student, teacher))
    return AlignedDocument(student.ids, teacher_ids, chunks, num_bytes, loss_start, loss_bytes)


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
