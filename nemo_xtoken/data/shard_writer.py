"""One shard of the sources as a small directory of prepared data, and all shards as one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.aligned import AlignedDocument, AlignedTeacher, align_documents
from nemo_xtoken.data.indexed import IndexedWriter, token_dtype
from nemo_xtoken.data.layout import DOCUMENT_COLUMNS, STUDENT, chunks_file, teacher_file
from nemo_xtoken.data.manifest import MOST_EXAMPLES, Manifest
from nemo_xtoken.data.prepared import load_documents, save_documents
from nemo_xtoken.data.reading import BadDocument, Fields, SourceDocument
from nemo_xtoken.data.shards import Shard
from nemo_xtoken.data.sources import read_slice
from nemo_xtoken.tokenizers.protocol import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text held and tokenized at a time; a longer document is a batch of its own."""


@dataclass(frozen=True)
class ShardWriter:
    """Prepares shards. `empty` is a manifest without counts; `on_error` gets the reason for a document left out.

    teachers  tokenizers, in the order of the manifest
    """

    empty: Manifest
    student: Tokenizer
    teachers: tuple[Tokenizer, ...]
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
                for outcome in align_documents(full, self.student, self.teachers):
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
    save_documents(directory, np.concatenate([load_documents(part) for part in parts]))
    manifest = empty
    for part in parts:
        manifest = manifest.plus(Manifest.load(part))
    return manifest


def _dtypes(manifest: Manifest) -> dict[str, np.dtype[Any]]:
    """The indexed datasets of prepared data."""
    found = {STUDENT: token_dtype(manifest.student.vocab_size)}
    for number, side in enumerate(manifest.teachers):
        if not side.shares_student_tokens:
            found[teacher_file(number)] = token_dtype(side.vocab_size)
            found[chunks_file(number)] = np.dtype("<i4")
    return found


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
        stack.callback(lambda: save_documents(directory, self._table()))
        self._student_tokens = self._bytes = 0
        self._teachers = list(empty.teachers)
        self.empty_documents = self.skipped_documents = 0
        self.skipped_examples: list[str] = []

    def add(self, document: AlignedDocument | None) -> None:
        """Append a document; None is an empty one."""
        if document is None:
            self.empty_documents += 1
            return
        self._writers[STUDENT].add(document.student)
        for number, teacher in enumerate(document.teachers):
            self._add_teacher(number, teacher)
        self._documents.extend((document.num_bytes, document.loss_start, document.loss_bytes))
        self._bytes += document.num_bytes
        self._student_tokens += len(document.student)

    def _add_teacher(self, number: int, teacher: AlignedTeacher) -> None:
        side, chunks = self._teachers[number], teacher.chunks
        if not side.shares_student_tokens:
            self._writers[teacher_file(number)].add(teacher.ids)
            self._writers[chunks_file(number)].add(chunks.reshape(-1))
        one_to_one = (chunks[:, 1] - chunks[:, 0] == 1) & (chunks[:, 3] - chunks[:, 2] == 1)
        self._teachers[number] = replace(
            side,
            tokens=side.tokens + len(teacher.ids),
            chunks=side.chunks + len(chunks),
            one_to_one_chunks=side.one_to_one_chunks + int(one_to_one.sum()),
            inexact_chunks=side.inexact_chunks + int((chunks[:, 4] == 0).sum()),
        )

    def manifest(self) -> Manifest:
        """What was written."""
        empty = self._empty
        return replace(
            empty,
            student=replace(empty.student, tokens=self._student_tokens),
            teachers=tuple(self._teachers),
            sources=(),
            documents=len(self._documents) // DOCUMENT_COLUMNS,
            empty_documents=self.empty_documents,
            skipped_documents=self.skipped_documents,
            skipped_examples=tuple(self.skipped_examples),
            bytes=self._bytes,
        )

    def _table(self) -> NDArray[np.int64]:
        return np.array(self._documents, dtype=np.int64).reshape(-1, DOCUMENT_COLUMNS)
