"""A document as it is stored: the tokens of all sides, with their specials, and the chunks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.alignment import align
from nemo_xtoken.data.reading import BadDocument, SourceDocument
from nemo_xtoken.errors import AlignmentError, XTokenError
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import Chunks, Encoding, role_code


class AlignedTeacher(NamedTuple):
    """A teacher's ids [m], and its chunks with the student [c, 5] int32 as in `layout`."""

    ids: NDArray[np.int32]
    chunks: NDArray[np.int32]


@dataclass(frozen=True)
class AlignedDocument:
    """The student's ids, those of every teacher with the chunks, and what is learnt of the document.

    num_bytes   UTF-8 bytes of the whole text
    loss_start  the first student token that begins in what is learnt
    loss_bytes  UTF-8 bytes from that token on
    """

    student: NDArray[np.int32]
    teachers: tuple[AlignedTeacher, ...]
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
    documents: Sequence[SourceDocument], student: Tokenizer, teachers: Sequence[Tokenizer]
) -> Iterator[AlignedDocument | BadDocument | None]:
    """Each document as [bos] prompt and text [eos] on every side, aligned; None for one without a token on some side.

    A teacher with the student's tokenizer has the student's tokens, each a chunk of its own.
    A document that a tokenizer refuses, or whose encodings do not describe the same text, is a BadDocument.
    """
    contents = [document.prompt + document.text for document in documents]
    try:
        students = _student_encodings(documents, contents, student)
        others = [students if is_same(teacher, student) else teacher.encode_batch(contents) for teacher in teachers]
    except XTokenError as error:
        if len(documents) > 1:
            for document in documents:
                yield from align_documents([document], student, teachers)
        else:
            yield BadDocument(f"{documents[0].place}: {error}")
        return
    edges = Edges.of(student), [Edges.of(teacher) for teacher in teachers]
    for i, (document, content) in enumerate(zip(documents, contents, strict=True)):
        try:
            yield _aligned(document, len(content.encode()), students[i], [other[i] for other in others], *edges)
        except AlignmentError as error:
            yield BadDocument(f"{document.place}: {error}")


def is_same(teacher: Tokenizer, student: Tokenizer) -> bool:
    """Whether a teacher has the student's tokenizer."""
    return teacher.fingerprint == student.fingerprint


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
    teacher_texts: Sequence[Encoding],
    student_edges: Edges,
    teacher_edges: Sequence[Edges],
) -> AlignedDocument | None:
    if not all(map(len, (student_text, *teacher_texts))):
        return None
    student = with_edges(student_text, student_edges, num_bytes)
    border = len(document.prompt.encode())
    loss_start = int(np.searchsorted(student.starts, border)) if border else 0
    loss_bytes = num_bytes - (int(student.starts[loss_start]) if loss_start < len(student) else num_bytes)
    teachers: list[AlignedTeacher] = []
    for text, edges in zip(teacher_texts, teacher_edges, strict=True):
        if text is student_text:
            teachers.append(AlignedTeacher(student.ids, one_to_one_table(len(student))))
            continue
        teacher = with_edges(text, edges, num_bytes)
        teachers.append(AlignedTeacher(teacher.ids, chunk_table(align(student, teacher))))
    return AlignedDocument(student.ids, tuple(teachers), num_bytes, loss_start, loss_bytes)


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
    table = np.empty((len(chunks), len(columns)), np.int32)
    for number, column in enumerate(columns):
        table[:, number] = column
    return table


def one_to_one_table(length: int) -> NDArray[np.int32]:
    """The chunks of `length` tokens with themselves, [length, 5] int32."""
    starts = np.arange(length, dtype=np.int32)
    return np.stack([starts, starts + 1, starts, starts + 1, np.ones_like(starts)], axis=1)
