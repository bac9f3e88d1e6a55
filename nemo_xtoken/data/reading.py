"""What every kind of source file offers: it can be cut into slices, and each slice read into documents on its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from nemo_xtoken.errors import DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer
from nemo_xtoken.types import Encoding

MOST_NAMES, MOST_CHARACTERS = 10, 300
"""What a message lists of keys, columns or files."""


class SourceDocument(NamedTuple):
    """One document of a source file.

    text        what is learnt, as it stands in the file (line ends included)
    place       where it is, for messages
    file_bytes  bytes of the file that it takes up
    prompt      what comes before the text and is not learnt
    student     the student's tokens of prompt and text, where the file holds these
    """

    text: str
    place: str
    file_bytes: int
    prompt: str = ""
    student: Encoding | None = None


class BadDocument(NamedTuple):
    """A document that cannot be used, or the rest of a file that cannot be read: the reason names the place."""

    reason: str
    file_bytes: int = 0


class Slice(NamedTuple):
    """Part of a source file: units [start, stop) of it, in a unit of its format (bytes, row groups, documents).

    first       number of its first line, row or document in the file, from 1
    file_bytes  its share of the file, for progress
    """

    path: Path
    start: int
    stop: int
    first: int
    file_bytes: int


class Scan(NamedTuple):
    """A source file read once before all work: its SHA-256 in hex, and its slices in order."""

    sha256: str
    slices: list[Slice]


@dataclass(frozen=True)
class Fields:
    """Where the documents of a source are: the keys or columns, and the tokenizer of a source of tokens."""

    text_key: str
    prompt_key: str | None
    student: Tokenizer


class SourceFormat(Protocol):
    """A kind of source file. Both methods raise DataError or OSError for a file that is not what its name says."""

    has_keys: bool
    """Whether a document has named parts, such as a prompt."""

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """Hash the file and cut it into slices of about `slice_bytes`; the cut depends on nothing else."""
        ...

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """The documents of a slice, in order; empty ones too."""
        ...


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first ones, if there are many or long ones."""
    text = ", ".join(names[:MOST_NAMES])
    text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "..."
    return text + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def hash_file(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut_units(path: Path, unit_bytes: ArrayLike, unit_documents: ArrayLike, slice_bytes: int) -> list[Slice]:
    """Slices of whole units, a new one with each `slice_bytes` of the file. Both arguments are [units] int64."""
    ends = np.cumsum(np.asarray(unit_bytes, np.int64))
    if not len(ends):
        return []
    numbers = np.concatenate([[0], np.cumsum(np.asarray(unit_documents, np.int64))])
    file_ends = ends * (path.stat().st_size / max(int(ends[-1]), 1))
    starts = np.flatnonzero(np.diff((file_ends / slice_bytes).astype(np.int64), prepend=-1))
    stops = np.append(starts[1:], len(ends))
    shares = np.diff(np.rint(file_ends[stops - 1]).astype(np.int64), prepend=0)
    rows = zip(starts.tolist(), stops.tolist(), (numbers[starts] + 1).tolist(), shares.tolist(), strict=True)
    return [Slice(path, *row) for row in rows]


def decode_utf8(content: bytes, path: Path, offset: int) -> str:
    """Text of bytes that stand at `offset` in a file. Raises DataError that names the first wrong byte."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {offset + error.start} ({error.reason}); convert it to UTF-8"
        ) from error
