"""The work of `prepare`, cut into shards: the same ones for the same sources, whoever does them and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from nemo_xtoken.data.manifest import SourceFile
from nemo_xtoken.data.reading import Slice
from nemo_xtoken.data.sources import unreadable, usable_format
from nemo_xtoken.errors import DataError

SHARD_BYTES = 1 << 20
"""Least size of a shard: what one process loses when it is killed."""

MOST_SHARDS = 4096
"""Larger shards take over above SHARD_BYTES times this, so that their files stay few."""


class Shard(NamedTuple):
    """Slices that one process prepares at a time, of one or more files."""

    slices: tuple[Slice, ...]

    @property
    def file_bytes(self) -> int:
        """Bytes of the sources that it stands for."""
        return sum(part.file_bytes for part in self.slices)


class Work(NamedTuple):
    """All sources with their hashes, the shards in order, and the reasons why other files were left out."""

    sources: tuple[SourceFile, ...]
    shards: list[Shard]
    refused: list[str]


def cut_sources(files: Sequence[Path], on_error: Callable[[str], None], threads: int) -> Work:
    """Read every file once, hash it and cut the text into shards. `on_error` may raise, or let the file be left out."""
    slice_bytes = max(SHARD_BYTES, sum(map(_size, files)) // MOST_SHARDS)

    def scan(file: Path) -> tuple[SourceFile, list[Slice]] | str:
        try:
            sha256, slices = usable_format(file).scan(file, slice_bytes)
            return SourceFile(path=str(file), bytes=file.stat().st_size, sha256=sha256), slices
        except (DataError, OSError) as error:
            return str(error) if isinstance(error, DataError) else unreadable(file, error)

    sources: list[SourceFile] = []
    slices: list[Slice] = []
    refused: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(scan, files):
            if isinstance(result, str):
                on_error(result)
                refused.append(result)
                continue
            sources.append(result[0])
            slices += result[1]
    return Work(tuple(sources), _grouped(slices, slice_bytes), refused)


def _size(file: Path) -> int:
    """Bytes of a file; 0 where that cannot be told, which is refused when it is read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _grouped(slices: Sequence[Slice], shard_bytes: int) -> list[Shard]:
    """Small slices together, up to `shard_bytes`."""
    groups: list[list[Slice]] = []
    held = 0
    for part in slices:
        if not groups or held + part.file_bytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(part)
        held += part.file_bytes
    return [Shard(tuple(group)) for group in groups]
