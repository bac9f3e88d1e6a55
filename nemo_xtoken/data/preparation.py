"""Text to prepared data on disk: the tokens of all sides and the chunks between them, document by document."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from nemo_xtoken.data.aligned import Edges, is_same
from nemo_xtoken.data.layout import MANIFEST, is_prepared_file
from nemo_xtoken.data.manifest import MOST_EXAMPLES, SCHEMA_VERSION, Manifest, Side, TeacherSide
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.shard_writer import ShardWriter, merge
from nemo_xtoken.data.shards import Shard, cut_sources
from nemo_xtoken.data.sources import find_sources, format_of
from nemo_xtoken.data.teacher_names import DEFAULT_NAME, is_name
from nemo_xtoken.data.workers import Report, run_tasks
from nemo_xtoken.data.workspace import Workspace, clear_up_after, workspace
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer

Progress = Callable[[int, int], None]
OnError = Literal["stop", "skip"]

logger = logging.getLogger(__name__)


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    student: Tokenizer,
    teacher: Tokenizer | Mapping[str, Tokenizer] | None,
    *,
    text_key: str = "text",
    prompt_key: str | None = None,
    on_error: OnError = "stop",
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Manifest:
    """Tokenize the documents of `sources` on all sides, align them and write them to the directory `out`.

    A document becomes [bos] text [eos] on each side, with the specials that the tokenizer has; empty documents are
    counted and left out. With `prompt_key` the prompt stands before the text and is not learnt. Without a teacher only
    the student side is written, and no chunks. A teacher with the student's tokenizer has the student's tokens.
    `out` appears whole, by a rename; a run that was killed goes on where it was, with any number of workers, to the
    same bytes. If `out` already holds this text from these tokenizers it is kept, and the manifest says `reused`;
    where documents were skipped then and may not be now, that is an error.
    teacher      one, or several by name; the student is aligned with each
    on_error     "skip" counts documents and files that cannot be used, with the first reasons, instead of raising
    workers      processes that are forked; with 1 all is done in this one
    on_progress  called with (done, total) bytes of the source files
    Raises DataError for bad input, and where `out` holds something else and `overwrite` is False; ConfigError for names
    that are none, for two teachers with one tokenizer, and for an empty path.
    """
    out = Path(out)
    teachers = _by_name(teacher)
    files = find_sources(sources)
    _check_keys(files, prompt_key)
    refuse = _refuse if on_error == "stop" else _ignore
    work = cut_sources(files, refuse, workers)
    empty = Manifest(
        student=_side(student),
        teachers=tuple(_teacher_side(name, tokenizer, student) for name, tokenizer in teachers.items()),
        text_key=text_key,
        prompt_key=prompt_key,
        sources=work.sources,
        skipped_documents=len(work.refused),
        skipped_examples=tuple(work.refused[:MOST_EXAMPLES]),
    )
    existing = _reusable(out, empty, on_error, overwrite)
    if existing is not None:
        logger.info("%s already holds this text from these tokenizers; it is reused", out)
        clear_up_after(out)
        return replace(existing, reused=True)
    _check_free(out, overwrite)
    blank = replace(empty, sources=(), skipped_documents=0, skipped_examples=())
    writer = ShardWriter(blank, student, tuple(teachers.values()), refuse)
    try:
        with workspace(out, _key(empty, work.shards)) as place:
            _write_shards(place, work.shards, writer, on_error, workers, on_progress or _silent)
            return _merge(place, len(work.shards), empty)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}; mend it and run the same again: it goes on where it was"
        ) from error


def _silent(done: int, total: int) -> None:
    pass


def _refuse(reason: str) -> None:
    raise DataError(reason)


def _ignore(reason: str) -> None:
    pass


def _check_keys(files: Sequence[Path], prompt_key: str | None) -> None:
    for file in files if prompt_key is not None else ():
        kind = format_of(file)
        if kind is not None and not kind.has_keys:
            raise DataError(
                f"{file} has no keys or columns, so no prompt; leave the prompt key out or convert the file"
            )


def _by_name(teacher: Tokenizer | Mapping[str, Tokenizer] | None) -> dict[str, Tokenizer]:
    if teacher is None:
        return {}
    teachers = dict(teacher) if isinstance(teacher, Mapping) else {DEFAULT_NAME: teacher}
    names: dict[str, str] = {}
    for name, tokenizer in teachers.items():
        if not is_name(name):
            raise ConfigError(f"expected a teacher's name of letters, digits, '.', '_' and '-', got {name!r}")
        first = names.setdefault(tokenizer.fingerprint, name)
        if first != name:
            raise ConfigError(
                f"teachers {first!r} and {name!r} have one tokenizer; prepare it once, as {first!r}, "
                f"and let the run's other teacher say prepared_as: {first}"
            )
    return teachers


def _side(tokenizer: Tokenizer) -> Side:
    bos_id, eos_id = Edges.of(tokenizer)
    return Side(
        spec=tokenizer.spec,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
    )


def _teacher_side(name: str, tokenizer: Tokenizer, student: Tokenizer) -> TeacherSide:
    return TeacherSide(**vars(_side(tokenizer)), name=name, shares_student_tokens=is_same(tokenizer, student))


def _reusable(out: Path, empty: Manifest, on_error: OnError, overwrite: bool) -> Manifest | None:
    """The manifest of what `out` holds, if this is it already. Raises DataError where it lacks what may not be skipped.

    What cannot be opened is none.
    """
    try:
        existing = PreparedData.open(out).manifest
    except DataError:
        return None
    if not existing.same_inputs(empty):
        return None
    if existing.skipped_documents and on_error == "stop":
        if overwrite:
            return None
        raise DataError(
            f"{out} holds this text without {existing.skipped_documents} documents or files that could not be used, "
            f"{_first_of(existing)}; take it as it is with on_error skip, or mend the sources and pass overwrite"
        )
    return existing


def _first_of(manifest: Manifest) -> str:
    """The first reason for what was skipped, for a message."""
    return f"the first: {manifest.skipped_examples[0]}" if manifest.skipped_examples else "for reasons not kept"


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise DataError unless `out` is absent, empty, prepared data that is incomplete, or any with `overwrite`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"expected a directory to write at {out}, got a file; choose another directory")
    present = {path.name for path in out.iterdir()}
    foreign = sorted(name for name in present if not is_prepared_file(name))
    if foreign:
        raise DataError(f"{out} holds files that are not prepared data, such as {foreign[0]}; choose another directory")
    if MANIFEST in present and not overwrite:
        raise DataError(
            f"{out} holds data of other text, tokenizers or version; choose another directory or pass overwrite"
        )


def _key(empty: Manifest, shards: Sequence[Shard]) -> str:
    """A name for the work: the same when every shard would be."""
    cuts = [[(part.start, part.stop, part.file_bytes) for part in shard.slices] for shard in shards]
    return hashlib.sha256(f"{SCHEMA_VERSION} {empty.inputs} {cuts}".encode()).hexdigest()


class _ShardWork(NamedTuple):
    """Writes a shard by its number."""

    place: Workspace
    shards: Sequence[Shard]
    writer: ShardWriter

    def __call__(self, number: int, report: Report) -> None:
        with self.place.finishing(number) as directory:
            self.writer.write(self.shards[number], directory, report)


def _write_shards(
    place: Workspace,
    shards: Sequence[Shard],
    writer: ShardWriter,
    on_error: OnError,
    workers: int,
    on_progress: Progress,
) -> None:
    """All shards that are not finished yet."""
    finished = {number for number in range(len(shards)) if place.part(number).is_dir()}
    for number in sorted(finished) if on_error == "stop" else ():
        if Manifest.load(place.part(number)).skipped_documents:
            place.drop(number)
            finished.remove(number)
    total = sum(shard.file_bytes for shard in shards)
    done = sum(shards[number].file_bytes for number in finished)

    def report(amount: int) -> None:
        nonlocal done
        done += amount
        on_progress(done, total)

    todo = [number for number in range(len(shards)) if number not in finished]
    run_tasks(todo, _ShardWork(place, shards, writer), workers, report)


def _merge(place: Workspace, num_shards: int, empty: Manifest) -> Manifest:
    directory = place.whole()
    manifest = merge([place.part(number) for number in range(num_shards)], directory, empty) if num_shards else empty
    if not manifest.documents:
        for number in range(num_shards):
            place.drop(number)
        places = ", ".join(source.path for source in empty.sources) or "any of the sources"
        raise DataError(
            f"expected text in {places}, got {manifest.empty_documents} documents, all of them empty"
            + (
                f", and {manifest.skipped_documents} that could not be used, {_first_of(manifest)}"
                if manifest.skipped_documents
                else ""
            )
        )
    manifest.save(directory)
    return manifest
