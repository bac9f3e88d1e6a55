"""Where prepared data is written before it appears: a directory beside its place, which the next run finds again."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nemo_xtoken.errors import DataError

KEY_NAME = "key"
LOCK_NAME = ".lock"
WHOLE = "whole"
TEMPORARY = ".tmp"


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that a power loss leaves whole once this returns; its name needs `sync_directory`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk, so that no power loss takes them back."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Workspace:
    """Parts that were finished, each under its number, and the whole before it takes the place of `out`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def part(self, number: int) -> Path:
        """The directory of a part; it is there only when the part is finished."""
        return self.directory / f"{number:06d}"

    @contextmanager
    def finishing(self, number: int) -> Generator[Path]:
        """An empty directory that becomes the part when the block ends without an error."""
        temporary = self.directory / f"{number:06d}.{os.getpid()}{TEMPORARY}"
        temporary.mkdir()
        yield temporary
        sync_directory(temporary)
        temporary.rename(self.part(number))

    def whole(self) -> Path:
        """An empty directory for all parts together."""
        shutil.rmtree(self.directory / WHOLE, ignore_errors=True)
        (self.directory / WHOLE).mkdir()
        return self.directory / WHOLE

    def drop(self, number: int) -> None:
        """Forget a finished part."""
        shutil.rmtree(self.part(number), ignore_errors=True)

    @property
    def is_empty(self) -> bool:
        """Whether no part is finished."""
        return not any(path.name.isdigit() for path in self.directory.iterdir())


@contextmanager
def workspace(out: Path, key: str) -> Generator[Workspace]:
    """The workspace of `out`, with the parts that an earlier run of the same key has finished.

    What is written to its `whole()` takes the place of `out` when the block ends without an error. After an error, or
    when the process is killed, finished parts stay for the next run; those of another key are removed by it.
    Raises DataError where another process has the workspace.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    directory = out.parent / f".{out.name}.partial"
    with _locked(directory, out):
        work = Workspace(directory)
        _clear_up(directory, key)
        try:
            yield work
        except BaseException:
            if work.is_empty:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        _replace(directory, out)


def clear_up_after(out: Path) -> None:
    """Remove the workspace of an `out` that is there, which a run left that was killed at its very end."""
    out = out.resolve()
    directory = out.parent / f".{out.name}.partial"
    if directory.is_dir():
        with _locked(directory, out):
            shutil.rmtree(directory)


@contextmanager
def _locked(directory: Path, out: Path) -> Generator[BinaryIO]:
    """A lock that goes with this process, and that forked ones do not share."""
    while True:
        directory.mkdir(exist_ok=True)
        with (directory / LOCK_NAME).open("wb") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(
                    f"another process is preparing {out}; wait for it or choose another directory"
                ) from error
            if _is_at(lock, directory / LOCK_NAME):  # else the run before has just removed it
                yield lock
                return


def _is_at(lock: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _clear_up(directory: Path, key: str) -> None:
    """Remove what was not finished, and everything of another key."""
    key_path = directory / KEY_NAME
    is_same = key_path.is_file() and key_path.read_text(encoding="utf-8") == key
    for path in directory.iterdir():
        if path.is_dir() and not (is_same and path.name.isdigit()):
            shutil.rmtree(path)
    key_path.write_text(key, encoding="utf-8")


def _replace(directory: Path, out: Path) -> None:
    sync_directory(directory / WHOLE)
    if out.exists():
        out.rename(directory / f"replaced{TEMPORARY}")
    (directory / WHOLE).rename(out)
    sync_directory(out.parent)  # before the parts go, from which it could be made again
    shutil.rmtree(directory)
