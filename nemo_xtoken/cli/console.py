"""Where commands write: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

# What commands show comes from files and command lines, so none of it is read as markup or as the name of an emoji.
stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)

SPEC_HELP = (
    "A directory or tokenizer.json, a .tiktoken or .model file (with ?pattern=NAME where the format has none), "
    "a Hugging Face name, 'bytes', or pkg:DISTRIBUTION/FILE."
)
StudentSpec = Annotated[str, typer.Option("--student", metavar="SPEC", help=f"The student's tokenizer. {SPEC_HELP}")]
TeacherSpec = Annotated[str, typer.Option("--teacher", metavar="SPEC", help="The teacher's tokenizer, likewise.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def print_error(message: str) -> None:
    """Writes `error: message` as one line on stderr."""
    stderr.print(Text.assemble(("error:", "bold red"), " ", " ".join(message.split())), soft_wrap=True)


def print_json(value: Any) -> None:
    """Writes a value as one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows on stderr that work goes on, and keeps what libraries print off stdout."""
    with contextlib.redirect_stdout(sys.stderr), stderr.status(what):
        yield


@contextlib.contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr over `(bytes done, bytes in all)`, which appears with the first progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=stderr)
    task = progress.add_task(what)

    def show(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if progress.live.is_started:
            progress.stop()
