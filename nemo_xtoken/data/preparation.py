"""Text to prepared data on disk: both sides' tokens and the chunks between them, document by document."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from nemo_xtoken.data.aligned import AlignedDocument, Edges, align_documents
from nemo_xtoken.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from nemo_xtoken.data.layout import CHUNKS, DOCUMENT_BYTES, MANIFEST, STUDENT, TEACHER
from nemo_xtoken.data.manifest import Manifest, Side, SourceFile
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.sources import SourceDocument, find_sources, hash_file, read_documents
from nemo_xtoken.data.workspace import appearing
from nemo_xtoken.errors import DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text held and tokenized at a time; a longer document is a batch of its own."""

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    student: Tokenizer,
    teacher: Tokenizer | None,
    *,
    text_key: str = "text",
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Manifest:
    """Tokenize the documents of `sources` on both sides, align them and write them to the directory `out`.

    A document becomes [bos] text [eos] on each side, with the specials that the tokenizer has; empty documents are
    counted and left out. Without a teacher only the student side is written, and no chunks.
    `out` appears whole, by a rename. If it already holds this text from these tokenizers it is kept, and the manifest
    says `reused`. `on_progress(done, total)` is called with bytes of the source files.
    Raises DataError for bad input, and where `out` holds something else and `overwrite` is False.
    """
    out = Path(out)
    plan = _plan(find_sources([Path(source) for source in sources]), student, teacher, text_key)
    existing = _existing(out)
    if existing is not None and existing.same_inputs(plan):
        logger.info("%s already holds this text from these tokenizers; it is reused", out)
        return replace(existing, reused=True)
    _check_free(out, overwrite)
    try:
        with appearing(out) as directory:
            manifest = _write(directory, plan, student, teacher, on_progress or _silent)
            manifest.save(directory)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    return manifest


def _silent(done: int, total: int) -> None:
    pass


def _plan(files: Sequence[Path], student: Tokenizer, teacher: Tokenizer | None, text_key: str) -> Manifest:
    """The manifest before anything is counted."""
    return Manifest(
        student=_side(student),
        teacher=None if teacher is None else _side(teacher),
        text_key=text_key,
        sources=tuple(SourceFile(path=str(file), bytes=file.stat().st_size, sha256=hash_file(file)) for file in files),
    )


def _side(tokenizer: Tokenizer) -> Side:
    bos_id, eos_id = Edges.of(tokenizer)
    return Side(
        spec=tokenizer.spec,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
    )


def _existing(out: Path) -> Manifest | None:
    """The manifest of what `out` holds; None for nothing, and for what cannot be opened."""
    try:
        return PreparedData.open(out).manifest
    except DataError:
        return None


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise DataError unless `out` is absent, empty, prepared data that is incomplete, or any with `overwrite`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"expected a directory to write at {out}, got a file; choose another directory")
    ours = {path(Path(name)).name for name in (STUDENT, TEACHER, CHUNKS) for path in (bin_path, idx_path)}
    present = {path.name for path in out.iterdir()}
    foreign = sorted(present - ours - {MANIFEST, DOCUMENT_BYTES})
    if foreign:
        raise DataError(f"{out} holds files that are not prepared data, such as {foreign[0]}; choose another directory")
    if MANIFEST in present and not overwrite:
        raise DataError(
            f"{out} holds data of other text, tokenizers or version; choose another directory or pass overwrite"
        )


def _write(
    directory: Path, plan: Manifest, student: Tokenizer, teacher: Tokenizer | None, on_progress: Progress
) -> Manifest:
    total, done, empty = sum(source.bytes for source in plan.sources), 0, 0
    with ExitStack() as stack:
        writer = _Writer(stack, directory, plan)
        for batch in _batches(plan):
            kept = 0
            for document in align_documents([source for source in batch if source.text], student, teacher):
                writer.add(document)
                kept += 1
            empty += len(batch) - kept
            done += sum(source.file_bytes for source in batch)
            on_progress(done, total)
        if not writer.document_bytes:
            places = ", ".join(source.path for source in plan.sources)
            raise DataError(f"expected text in {places}, got {empty} documents, all of them empty")
    np.save(directory / DOCUMENT_BYTES, np.array(writer.document_bytes, dtype=np.int64))
    return writer.manifest(empty)


def _batches(plan: Manifest) -> Iterator[list[SourceDocument]]:
    batch: list[SourceDocument] = []
    held = 0
    for source in plan.sources:
        for document in read_documents(Path(source.path), plan.text_key):
            batch.append(document)
            held += len(document.text)
            if held >= BATCH_CHARACTERS:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


class _Writer:
    """The files of prepared data while they are written, and what they hold so far. Closed by the stack."""

    def __init__(self, stack: ExitStack, directory: Path, plan: Manifest) -> None:
        self._plan = plan
        self._student = stack.enter_context(IndexedWriter(directory / STUDENT, token_dtype(plan.student.vocab_size)))
        self._teacher = self._chunks = None
        if plan.teacher is not None:
            self._teacher = stack.enter_context(
                IndexedWriter(directory / TEACHER, token_dtype(plan.teacher.vocab_size))
            )
            self._chunks = stack.enter_context(IndexedWriter(directory / CHUNKS, np.int32))
        self.document_bytes = array("q")
        self._student_tokens = self._teacher_tokens = 0
        self._num_chunks = self._one_to_one = self._inexact = 0

    def add(self, document: AlignedDocument) -> None:
        self._student.add(document.student)
        self._student_tokens += len(document.student)
        self.document_bytes.append(document.num_bytes)
        if self._teacher is None or self._chunks is None:
            return
        chunks = document.chunks
        self._teacher.add(document.teacher)
        self._chunks.add(chunks.reshape(-1))
        self._teacher_tokens += len(document.teacher)
        self._num_chunks += len(chunks)
        self._one_to_one += int(((chunks[:, 1] - chunks[:, 0] == 1) & (chunks[:, 3] - chunks[:, 2] == 1)).sum())
        self._inexact += int((chunks[:, 4] == 0).sum())

    def manifest(self, empty_documents: int) -> Manifest:
        plan = self._plan
        return replace(
            plan,
            student=replace(plan.student, tokens=self._student_tokens),
            teacher=None if plan.teacher is None else replace(plan.teacher, tokens=self._teacher_tokens),
            documents=len(self.document_bytes),
            empty_documents=empty_documents,
            bytes=sum(self.document_bytes),
            chunks=self._num_chunks,
            one_to_one_chunks=self._one_to_one,
            inexact_chunks=self._inexact,
        )
