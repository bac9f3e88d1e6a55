"""A directory that appears whole or not at all: written under a temporary name beside its place, then renamed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = ".lock"
SUFFIX = ".partial"


@contextmanager
def appearing(out: Path) -> Generator[Path]:
    """An empty directory to write into, which takes the place of `out` when the block ends without an error.

    What killed runs left beside `out` is removed. A running one holds a lock on its directory and is left alone.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    directory = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=SUFFIX, dir=out.parent))
    try:
        directory.chmod(0o755)
        with (directory / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
            (directory / LOCK_NAME).unlink()
            _replace(directory, out)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _replace(directory: Path, out: Path) -> None:
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=SUFFIX, dir=out.parent))
        out.rename(old / out.name)
        directory.rename(out)
        shutil.rmtree(old)
    else:
        directory.rename(out)


def _remove_leftovers(out: Path) -> None:
    """A lock goes with the process that held it, so a directory whose lock can be had was left by one that died."""
    for lock_path in out.parent.glob(f".{out.name}.*{SUFFIX}/{LOCK_NAME}"):
        try:
            with lock_path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
        except OSError:
            continue
