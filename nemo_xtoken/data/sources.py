"""Documents out of text files: a `.txt` is one document; a line of a `.jsonl` is one, with its text under a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from nemo_xtoken.errors import DataError

SUFFIXES = (".txt", ".jsonl")


class SourceDocument(NamedTuple):
    """One document of a source file.

    text        what is tokenized, as it stands in the file (line ends included)
    place       where it is, for messages
    file_bytes  bytes of the file that it takes up
    """

    text: str
    place: str
    file_bytes: int


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """The files that the paths name, in order; a folder stands for all `.txt` and `.jsonl` below it, sorted by path."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        elif not path.exists():
            raise DataError(f"expected a .txt or .jsonl file or a folder of them at {path}, found nothing there")
        elif path.suffix not in SUFFIXES:
            raise DataError(f"{path} is not a .txt or .jsonl file; convert or rename it")
        else:
            found.append(path)
    if not found:
        raise DataError(
            f"no .txt or .jsonl file in {', '.join(map(str, paths)) or 'an empty list of sources'}; name one"
        )
    return found


def hash_file(path: Path) -> str:
    """The file's SHA-256 in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def read_documents(path: Path, text_key: str = "text") -> Iterator[SourceDocument]:
    """The documents of one source file, in order; empty ones too, blank lines of a `.jsonl` not.

    Raises DataError that names the file and the line or byte for what is not UTF-8, not JSON or lacks `text_key`.
    """
    try:
        yield from _read_text(path) if path.suffix == ".txt" else _read_lines(path, text_key)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_text(path: Path) -> Iterator[SourceDocument]:
    content = path.read_bytes()
    yield SourceDocument(_decode(content, path, 0), str(path), len(content))


def _read_lines(path: Path, text_key: str) -> Iterator[SourceDocument]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path} line {number}"
                yield SourceDocument(_text_of(_decode(line, path, offset), text_key, place), place, len(line))
            offset += len(line)


def _decode(content: bytes, path: Path, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {offset + error.start} ({error.reason}); convert it to UTF-8"
        ) from error


def _text_of(line: str, text_key: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place} is not JSON: {reason}") from error
    if not isinstance(record, dict):
        raise DataError(f'{place}: expected a JSON object with the key "{text_key}", got a {type(record).__name__}')
    text = cast("dict[str, Any]", record).get(text_key)
    if text is None:
        keys = ", ".join(cast("dict[str, Any]", record)) or "none"
        raise DataError(f'{place} has no text under the key "{text_key}" (its keys: {keys}); pass another text key')
    if not isinstance(text, str):
        raise DataError(f'{place}: expected a string under "{text_key}", got a {type(text).__name__}')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{place}: "{text_key}" holds half of a surrogate pair at character {error.start}; mend the JSON'
        ) from error
    return text
