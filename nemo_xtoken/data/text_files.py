"""Text files: a `.txt` is a document; so is a line of a `.jsonl`, with its text under a key. Either may be gzipped."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemo_xtoken.data.reading import BadDocument, Fields, Scan, Slice, SourceDocument, decode_utf8, hash_file, listed
from nemo_xtoken.errors import DataError

BLOCK_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 26
"""A longer document is refused, since it is held in memory with its tokens."""

BYTE_ORDER_MARK = "\ufeff"


class TextFile:
    """A file that is one document. It is never cut."""

    has_keys = False

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """One slice; see `SourceFormat.scan`."""
        return Scan(hash_file(path), [_whole(path)])

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """The document; see `SourceFormat.read`."""
        with _opened(part.path) as (content, _):
            text = content.read(MAX_DOCUMENT_BYTES + 1)
        if len(text) > MAX_DOCUMENT_BYTES:
            raise DataError(_too_long(str(part.path)))
        yield SourceDocument(_decoded(text, part.path, 0), str(part.path), part.file_bytes)


class JsonLines:
    """A file with a JSON object a line. It is cut between lines, a gzipped one never."""

    has_keys = True

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """See `SourceFormat.scan`; a slice holds the lines that begin in it."""
        if path.suffix == ".gz":
            return Scan(hash_file(path), [_whole(path)])
        digest, size = hashlib.sha256(), 0

        def blocks(file: BinaryIO) -> Iterator[bytes]:
            nonlocal size
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                yield block

        with path.open("rb") as file:
            starts = [(0, 1), *_line_starts(blocks(file), slice_bytes)]
        stops = [offset for offset, _ in starts[1:]] + [size]
        slices = [
            Slice(path, start, stop, first, stop - start)
            for (start, first), stop in zip(starts, stops, strict=True)
            if stop > start
        ]
        return Scan(digest.hexdigest(), slices)

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """A document a line that is not blank; see `SourceFormat.read`."""
        with _opened(part.path) as (content, raw):
            content.seek(part.start)
            told = part.start
            for number, (at, line, size) in enumerate(_lines(content, part.start, part.stop), part.first):
                told, file_bytes = (told, size) if content is raw else (raw.tell(), raw.tell() - told)
                place = f"{part.path} line {number}"
                if size > MAX_DOCUMENT_BYTES:
                    yield BadDocument(_too_long(place), file_bytes)
                elif line.strip():
                    try:
                        yield _document(_decoded(line, part.path, at), fields, place, file_bytes)
                    except DataError as error:
                        yield BadDocument(str(error), file_bytes)


def _decoded(content: bytes, path: Path, offset: int) -> str:
    """The text from this place of a file; a byte order mark at the file's front is none of it. Raises DataError."""
    text = decode_utf8(content, path, offset)
    return text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text


def text_value(value: object, key: str, place: str) -> str:
    """A value of a record as text. Raises DataError where it is none."""
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f'{place}: expected a string under "{key}", got {kind}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{key}" holds half of a surrogate pair at character {error.start}; mend the JSON'
        ) from error
    return value


def _whole(path: Path) -> Slice:
    return Slice(path, 0, sys.maxsize, 1, path.stat().st_size)


def _too_long(place: str) -> str:
    return f"{place} is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; split the document"


@contextmanager
def _opened(path: Path) -> Generator[tuple[BinaryIO, BinaryIO]]:
    """The content of a file, and the file itself; the same where it is not gzipped."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            yield raw, raw
            return
        with gzip.open(raw) as content:
            yield cast("BinaryIO", content), raw


def _line_starts(blocks: Iterator[bytes], slice_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and number of the line that begins each slice but the first."""
    offset, number, due = 0, 1, slice_bytes
    for block in blocks:
        at = 0
        while (newline := block.find(b"\n", max(due - offset - 1, at))) >= 0:
            number += block.count(b"\n", at, newline + 1)
            at = newline + 1
            due = offset + at + slice_bytes
            yield offset + at, number
        number += block.count(b"\n", at)
        offset += len(block)


def _lines(content: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes, int]]:
    """Offset, bytes and size of each line; of a line that is too long only the beginning."""
    at = start
    while at < stop and (line := content.readline(MAX_DOCUMENT_BYTES + 1)):
        size, end = len(line), line
        while size > MAX_DOCUMENT_BYTES and end and not end.endswith(b"\n"):
            end = content.readline(BLOCK_BYTES)
            size += len(end)
        yield at, line, size
        at += size


def _document(line: str, fields: Fields, place: str, file_bytes: int) -> SourceDocument:
    record = _record(line, fields.text_key, place)
    prompt = "" if fields.prompt_key is None else _value(record, fields.prompt_key, place)
    return SourceDocument(_value(record, fields.text_key, place), place, file_bytes, prompt)


def _record(line: str, text_key: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place} is not JSON: {reason}") from error
    if not isinstance(record, dict):
        raise DataError(f'{place}: expected a JSON object with the key "{text_key}", got a {type(record).__name__}')
    return cast("dict[str, Any]", record)


def _value(record: dict[str, Any], key: str, place: str) -> str:
    if record.get(key) is None:
        keys = listed(list(record)) or "none"
        raise DataError(f'{place} has no text under the key "{key}" (its keys: {keys}); pass another key')
    return text_value(record[key], key, place)
