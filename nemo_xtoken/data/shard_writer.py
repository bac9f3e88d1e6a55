"""One shard of the sources as a small directory of prepared data, and all shards as one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_xtoken.data.aligned import AlignedDocument, align_documents
from nemo_xtoken.data.indexed import IndexedWriter, token_dtype
from nemo_xtoken.data.layout import CHUNKS, DOCUMENT_COLUMNS, DOCUMENTS, STUDENT, TEACHER
from nemo_xtoken.data.manifest import MOST_EXAMPLES, Manifest
from nemo_xtoken.data.reading import BadDocument, Fields, SourceDocument
from nemo_xtoken.data.shards import Shard
from nemo_xtoken.data.sources import read_slice
from nemo_xtoken.tokenizers.protocol import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text held and tokenized at a time; a longer document is a batch of its own."""


@dataclass(frozen=True)
class ShardWriter:
    """Prepares shards. `empty` is a manifest without counts; `on_error` gets the reason for a document left out."""

    empty: Manifest
    student: Tokenizer
    teacher: Tokenizer | None
    on_error: Callable[[str], None]

    def write(self, shard: Shard, directory: Path, report: Callable[[int], None]) -> None:
        """Fill the empty directory; `report` is told of bytes of the sources."""
        reported = 0
        with ExitStack() as stack:
            files = _Files(stack, directory, self.empty)
            for batch in _batches(self._read(shard)):
                good = [document for document in batch if isinstance(document, SourceDocument)]
                for bad in batch:
                    if isinstance(bad, BadDocument):
                        self._refuse(bad, files)
                full = [document for document in good if document.text]
                files.empty_documents += len(good) - len(full)
                for outcome in align_documents(full, self.student, self.teacher):
                    if isinstance(outcome, BadDocument):
                        self._refuse(outcome, files)
                    else:
                        files.add(outcome)
                done = sum(document.file_bytes for document in batch)
                report(done)
                reported += done
        report(shard.file_bytes - reported)
        files.manifest().save(directory)

    def _read(self, shard: Shard) -> Iterator[SourceDocument | BadDocument]:
        fields = Fields(self.empty.text_key, self.empty.prompt_key, self.student)
        for part in shard.slices:
            yield from read_slice(part, fields)

    def _refuse(self, bad: BadDocument, files: _Files) -> None:
        self.on_error(bad.reason)
        files.skipped_documents += 1
        files.skipped_examples = [*files.skipped_examples, bad.reason][:MOST_EXAMPLES]


def merge(parts: Sequence[Path], directory: Path, empty: Manifest) -> Manifest:
    """Write the shards in `parts`, one after the other, as one into the empty directory.

    One set of files is what Megatron's own reader takes, and needs no second kind of reader here; the copy costs a
    few per cent of the tokenizing.
    """
    for name, dtype in _dtypes(empty).items():
        with IndexedWriter(directory / name, dtype) as writer:
            for part in parts:
                writer.append(part / name)
    np.save(directory / DOCUMENTS, np.concatenate([np.load(part / DOCUMENTS) for part in parts]))
    manifest = empty
    for part in parts:
        manifest = manifest.plus(Manifest.load(part))
    return manifest


def _dtypes(manifest: Manifest) -> dict[str, np.dtype[Any]]:
    """The indexed datasets of prepared data."""
    student = {STUDENT: token_dtype(manifest.student.vocab_size)}
    if manifest.teacher is None:
        return student
    return {**student, TEACHER: token_dtype(manifest.teacher.vocab_size), CHUNKS: np.dtype("<i4")}


def _batches(
    documents: Iterable[SourceDocument | BadDocument],
) -> Iterator[list[SourceDocument | BadDocument]]:
    batch: list[SourceDocument | BadDocument] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.prompt) + len(document.text) if isinstance(document, SourceDocument) else 0
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _Files:
    """The files of prepared data while they are written, and what they hold so far. Closed by the stack."""

    def __init__(self, stack: ExitStack, directory: Path, empty: Manifest) -> None:
        self._empty = empty
        self._documents = array("q")
        self._writers = {
            name: stack.enter_context(IndexedWriter(directory / name, dtype)) for name, dtype in _dtypes(empty).items()
        }
        stack.callback(lambda: np.save(directory / DOCUMENTS, self._table()))
        self._student_tokens = self._teacher_tokens = self._bytes = 0
        self._num_chunks = self._one_to_one = self._inexact = 0
        self.empty_documents = self.skipped_documents = 0
        self.skipped_examples: list[str] = []

    def add(self, document: AlignedDocument | None) -> None:
        """Append a document; None is an empty one."""
        if document is None:
            self.empty_documents += 1
            return
        chunks = document.chunks
        for name, tokens in ((STUDENT, document.student), (TEACHER, document.teacher), (CHUNKS, chunks.reshape(-1))):
            if name in self._writers:
                self._writers[name].add(tokens)
        self._documents.extend((document.num_bytes, document.loss_start, document.loss_bytes))
        self._bytes += document.num_bytes
        self._student_tokens += len(document.student)
        self._teacher_tokens += len(document.teacher)
        self._num_chunks += len(chunks)
        self._one_to_one += int(((chunks[:, 1] - chunks[:, 0] == 1) & (chunks[:, 3] - chunks[:, 2] == 1)).sum())
        self._inexact += int((chunks[:, 4] == 0).sum())

    def manifest(self) -> Manifest:
        """What was written."""
        empty = self._empty
        return replace(
            empty,
            student=replace(empty.student, tokens=self._student_tokens),
            teacher=None if empty.teacher is None else replace(empty.teacher, tokens=self._teacher_tokens),
            sources=(),
            documents=len(self._documents) // DOCUMENT_COLUMNS,
            empty_documents=self.empty_documents,
            skipped_documents=self.skipped_documents,
            skipped_examples=tuple(self.skipped_examples),
            bytes=self._bytes,
            chunks=self._num_chunks,
            one_to_one_chunks=self._one_to_one,
            inexact_chunks=self._inexact,
        )

    def _table(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self._documents, dtype=np.int64).reshape(-1, DOCUMENT_COLUMNS)
