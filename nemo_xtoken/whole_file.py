"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Generator
from pathlib import Path

from nemo_xtoken.errors import require


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path, None, None]:
    """Gives the name to write a file under; once it is whole it takes its own, and nothing of it stays otherwise.

    Raises ConfigError for a folder, OSError of the file's own name where it can't be written.
    """
    require(not path.is_dir(), f"{path}: expected the name of a file to write, got a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")  # others may write it as well
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8. Raises as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
