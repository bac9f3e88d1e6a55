"""Prepared data, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.indexed import IndexedReader
from nemo_xtoken.data.layout import CHUNK_COLUMNS, CHUNKS, DOCUMENT_COLUMNS, DOCUMENTS, STUDENT, TEACHER
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import Chunks


@dataclass(frozen=True)
class Document:
    """One document: tokens of both sides with their bos and eos (teacher: [0] where there is none), and its chunks."""

    student_tokens: NDArray[Any]
    teacher_tokens: NDArray[Any]
    chunks: Chunks


class PreparedData:
    """A directory written by `prepare`, memory-mapped. Its length is the number of documents.

    manifest         what it holds
    student_lengths  [documents] int64 tokens
    teacher_lengths  [documents] int64 tokens, zeros without a teacher
    chunk_counts     [documents] int64 chunks
    document_bytes   [documents] int64 UTF-8 bytes
    loss_starts      [documents] int64, the first student token that is learnt; 0 without a prompt
    loss_bytes       [documents] int64 UTF-8 bytes of the text from that token on
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._student = IndexedReader(path / STUDENT)
        self._teacher = None if manifest.teacher is None else IndexedReader(path / TEACHER)
        self._chunks = None if manifest.teacher is None else IndexedReader(path / CHUNKS)
        self.student_lengths = self._student.lengths.astype(np.int64)
        self.teacher_lengths = self._lengths(self._teacher)
        self.chunk_counts = self._lengths(self._chunks) // CHUNK_COLUMNS
        self.document_bytes, self.loss_starts, self.loss_bytes = _load_documents(path / DOCUMENTS)
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

    def teacher_tokens(self, i: int) -> NDArray[Any]:
        """Teacher tokens of document i, [m] uint16 or int32, a view of the file; [0] without a teacher."""
        return np.empty(0, np.int32) if self._teacher is None else self._teacher[i]

    def chunk_table(self, i: int) -> NDArray[np.int32]:
        """Chunks of document i, [c, 5] as in `layout.CHUNK_COLUMNS`; a view of the file."""
        chunks = np.empty(0, np.int32) if self._chunks is None else self._chunks[i]
        return chunks.reshape(-1, CHUNK_COLUMNS)

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len."""
        table = self.chunk_table(i)
        starts_and_ends = table[:, :4].astype(np.int64).T
        return Document(
            self.student_tokens(i), self.teacher_tokens(i), Chunks(*starts_and_ends, exact=table[:, 4] != 0)
        )

    def _lengths(self, reader: IndexedReader | None) -> NDArray[np.int64]:
        return np.zeros(len(self._student), np.int64) if reader is None else reader.lengths.astype(np.int64)

    def _check_counts(self) -> None:
        lengths = (self.student_lengths, self.teacher_lengths, self.chunk_counts, self.document_bytes)
        counts = {len(self), self.manifest.documents, *map(len, lengths)}
        if len(counts) > 1:
            raise DataError(
                f"the files in {self.path} hold different numbers of documents {sorted(counts)}; prepare it again"
            )


def _load_documents(path: Path) -> NDArray[np.int64]:
    """The table of documents, [DOCUMENT_COLUMNS, documents]."""
    try:
        table: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return np.ascontiguousarray(table.reshape(-1, DOCUMENT_COLUMNS).T)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; prepare the data again") from error
