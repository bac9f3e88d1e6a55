"""Prepared data, memory-mapped."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.aligned import one_to_one_table
from nemo_xtoken.data.indexed import IndexedReader
from nemo_xtoken.data.layout import CHUNK_COLUMNS, DOCUMENT_COLUMNS, DOCUMENTS, STUDENT, chunks_file, teacher_file
from nemo_xtoken.data.manifest import Manifest, TeacherSide
from nemo_xtoken.data.workspace import write_durably
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import Chunks


@dataclass(frozen=True)
class Document:
    """One document of the student and one teacher: tokens with their bos and eos, and the chunks between them.

    Without a teacher its tokens are [0] and there is no chunk.
    """

    student_tokens: NDArray[Any]
    teacher_tokens: NDArray[Any]
    chunks: Chunks


class PreparedTeacher:
    """A teacher's tokens of every document, and its chunks with the student, memory-mapped.

    side          what the manifest says of it
    lengths       [documents] int64 tokens
    chunk_counts  [documents] int64 chunks
    first_tokens  [documents] int64, the number of a document's first token among those of all documents
    """

    def __init__(self, side: TeacherSide, path: Path, number: int, student: IndexedReader) -> None:
        self.side = side
        self._tokens = student if side.shares_student_tokens else IndexedReader(path / teacher_file(number))
        self._chunks = None if side.shares_student_tokens else IndexedReader(path / chunks_file(number))
        self.lengths = self._tokens.lengths.astype(np.int64)
        self.first_tokens = np.cumsum(self.lengths) - self.lengths
        self.chunk_counts = (
            self.lengths if self._chunks is None else self._chunks.lengths.astype(np.int64) // CHUNK_COLUMNS
        )

    def tokens(self, i: int) -> NDArray[Any]:
        """Tokens of document i, [m] uint16 or int32, a view of the file."""
        return self._tokens[i]

    def chunk_table(self, i: int) -> NDArray[np.int32]:
        """Chunks of document i, [c, 5] as in `layout.CHUNK_COLUMNS`."""
        if self._chunks is None:
            return one_to_one_table(int(self.lengths[i]))
        return self._chunks[i].reshape(-1, CHUNK_COLUMNS)


class PreparedData:
    """A directory written by `prepare`, memory-mapped. Its length is the number of documents.

    manifest         what it holds
    teachers         in the order of the manifest
    student_lengths  [documents] int64 tokens
    document_bytes   [documents] int64 UTF-8 bytes
    loss_starts      [documents] int64, the first student token that is learnt; 0 without a prompt
    loss_bytes       [documents] int64 UTF-8 bytes of the text from that token on
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._student = IndexedReader(path / STUDENT)
        self.teachers = tuple(
            PreparedTeacher(side, path, number, self._student) for number, side in enumerate(manifest.teachers)
        )
        self.student_lengths = self._student.lengths.astype(np.int64)
        self.document_bytes, self.loss_starts, self.loss_bytes = np.ascontiguousarray(load_documents(path).T)
        self._check_counts()

    @classmethod
    def open(cls, path: str | Path) -> PreparedData:
        """Open a directory. Raises DataError where it is missing, incomplete, damaged or of another schema."""
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"expected a directory of prepared data at {path}, found none; run data prepare")
        return cls(path, Manifest.load(path))

    def __len__(self) -> int:
        return len(self.student_lengths)

    def student_tokens(self, i: int) -> NDArray[Any]:
        """Student tokens of document i, [n] uint16 or int32, a view of the file."""
        return self._student[i]

    def document(self, i: int, teacher: int = 0) -> Document:
        """Document i, 0 <= i < len, with the tokens and chunks of one teacher, by its number."""
        if not self.teachers:
            empty = np.empty(0, np.int64)
            nothing = Chunks(empty, empty, empty, empty, np.empty(0, np.bool_))
            return Document(self.student_tokens(i), np.empty(0, np.int32), nothing)
        table = self.teachers[teacher].chunk_table(i)
        starts_and_ends = table[:, :4].astype(np.int64).T
        return Document(
            self.student_tokens(i), self.teachers[teacher].tokens(i), Chunks(*starts_and_ends, exact=table[:, 4] != 0)
        )

    def _check_counts(self) -> None:
        of_teachers = (lengths for teacher in self.teachers for lengths in (teacher.lengths, teacher.chunk_counts))
        counts = {len(self), self.manifest.documents, *map(len, (self.document_bytes, *of_teachers))}
        if len(counts) > 1:
            raise DataError(
                f"the files in {self.path} hold different numbers of documents {sorted(counts)}; prepare it again"
            )


def save_documents(directory: Path, table: NDArray[np.int64]) -> None:
    """Write the table of documents, [documents, DOCUMENT_COLUMNS]."""
    content = io.BytesIO()
    np.save(content, table)
    write_durably(directory / DOCUMENTS, content.getvalue())


def load_documents(directory: Path) -> NDArray[np.int64]:
    """The table of documents, [documents, DOCUMENT_COLUMNS]. Raises DataError for a missing or damaged one."""
    path = directory / DOCUMENTS
    try:
        with path.open("rb") as file:
            table: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"cannot read {path}: {reason}; prepare the data again") from error
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != DOCUMENT_COLUMNS:
        raise DataError(
            f"{path} holds {table.dtype} numbers of shape {table.shape}; expected int64 of shape "
            f"(documents, {DOCUMENT_COLUMNS}); prepare the data again"
        )
    return table
