"""Which files are sources, and how each kind is read."""

from __future__ import annotations

import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_xtoken.data import hub
from nemo_xtoken.data.indexed import bin_path, idx_path
from nemo_xtoken.data.reading import BadDocument, Fields, Slice, SourceDocument, SourceFormat, listed
from nemo_xtoken.data.tables import ArrowFile, ParquetFile
from nemo_xtoken.data.text_files import JsonLines, TextFile
from nemo_xtoken.data.token_files import TokenFile, TokenIndex
from nemo_xtoken.errors import ConfigError, DataError

IN_FOLDERS: dict[str, SourceFormat] = {
    ".txt": TextFile(),
    ".txt.gz": TextFile(),
    ".jsonl": JsonLines(),
    ".jsonl.gz": JsonLines(),
    ".parquet": ParquetFile(),
}
"""What a folder stands for, by the end of the name."""

FORMATS: dict[str, SourceFormat] = {**IN_FOLDERS, ".arrow": ArrowFile(), ".bin": TokenFile(), ".idx": TokenIndex()}
EXPECTED = ".txt, .jsonl (or either with .gz), .parquet, .bin with its .idx, or a Hugging Face dataset on disk"


def find_sources(paths: Sequence[str | Path]) -> list[Path]:
    """The files that the paths name, in order.

    hf:OWNER/NAME stands for the text files and tables of a dataset on the hub, which are fetched; see `hub.fetch`. A
    Hugging Face dataset on disk stands for its Arrow files; any other folder for all text files and tables below it,
    sorted by path; a `.bin`, its `.idx` or the prefix of both for both. Links are followed. What cannot be read is
    among them, such as a folder that cannot be listed: see `usable_format`. Raises DataError for what is no source,
    ConfigError for an empty path.
    """
    if "" in paths:
        raise ConfigError("expected the path of a source, got an empty one; name the current folder as .")
    found: list[Path] = []
    for path in map(Path, paths):
        if hub.is_hub_name(path):
            found += hub.fetch(str(path), list(IN_FOLDERS))
        else:
            found += _in_folder(path) if stat.S_ISDIR(_mode(path)) else _file(path)
    if not found:
        raise DataError(
            f"no source in {', '.join(map(str, paths)) or 'an empty list of sources'}; expected {', '.join(IN_FOLDERS)}"
        )
    return found


def part_of(paths: Sequence[str | Path], part: str) -> list[Path]:
    """Every N-th of the sources that the paths name, from the I-th on, for `part` I/N counted from 0: what one job
    of an array prepares.

    The two files of an indexed dataset stay together. Raises ConfigError for another text, or a part without a source.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise ConfigError(f"--part: expected I/N with I from 0 to N - 1, such as 0/8, got {part!r}")
    sources = find_sources(paths)
    whole = [path for path in sources if path.suffix != ".bin"]
    if count > len(whole):
        raise ConfigError(f"--part: {len(whole)} sources can't be cut into {count} parts; take fewer, or cut the files")
    chosen = set(whole[index::count])
    return [
        path for path in sources if path in chosen or (path.suffix == ".bin" and path.with_suffix(".idx") in chosen)
    ]


def format_of(path: Path) -> SourceFormat | None:
    """The kind of a file, by its name."""
    return next((kind for suffix, kind in FORMATS.items() if path.name.endswith(suffix)), None)


def read_slice(part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
    """The documents of a slice, in order, empty ones too; a file that cannot be read on ends with a BadDocument."""
    kind = format_of(part.path)
    assert kind is not None
    try:
        yield from kind.read(part, fields)
    except DataError as error:
        yield BadDocument(str(error))
    except (OSError, EOFError, zlib.error) as error:
        yield BadDocument(unreadable(part.path, error))


def unreadable(path: Path, error: Exception) -> str:
    """One line about a file that cannot be read."""
    return f"cannot read {path}: {getattr(error, 'strerror', None) or error}"


def usable_format(path: Path) -> SourceFormat:
    """The kind of a source that can be read more than once. Raises DataError or OSError for what is none."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        list(path.iterdir())  # raises for the folders that `find_sources` could not list
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is no regular file, and a source is read more than once; write it to a file first")
    kind = format_of(path)
    if kind is None:
        raise DataError(f"{path} is none of {EXPECTED}; convert or rename it")
    return kind


def _in_folder(folder: Path) -> list[Path]:
    if stat.S_ISREG(_mode(folder / "dataset_dict.json")):
        splits = listed(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise DataError(f"{folder} holds the splits {splits} of a Hugging Face dataset; name one: {folder}/SPLIT")
    if all(stat.S_ISREG(_mode(folder / name)) for name in ("dataset_info.json", "state.json")):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [folder / file["filename"] for file in state["_data_files"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{folder}/state.json is not that of a Hugging Face dataset on disk: {error}") from error
    return sorted(_below(folder))


def _below(folder: Path) -> Iterator[Path]:
    """The text files and tables below a folder, links followed, and what may hide some: folders that cannot be listed,
    links that lead nowhere."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = place.stat()
            with os.scandir(place) as entries:
                inside = [(place / entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            yield place
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link to a folder that it lies in
        for path, is_folder in inside:
            mode = _mode(path)
            if is_folder or stat.S_ISDIR(mode):
                waiting.append((path, above | {identity}))
            elif path.name.endswith(tuple(IN_FOLDERS)) or (not mode and not path.suffix):
                yield path


def _mode(path: Path) -> int:
    """Its mode, links followed; 0 where that cannot be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _file(path: Path) -> list[Path]:
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if stat.S_ISREG(_mode(bin_path(prefix))) and stat.S_ISREG(_mode(idx_path(prefix))):
        return [idx_path(prefix), bin_path(prefix)]
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"expected a source at {path}, found nothing there; a source is {EXPECTED}") from error
    except OSError:
        return [path]
    if prefix != path:
        raise DataError(f"{path} lacks the other of its two files {prefix.name}.bin and {prefix.name}.idx")
    usable_format(path)
    return [path]
