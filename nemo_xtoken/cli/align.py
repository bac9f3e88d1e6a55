"""`nemo-xtoken align`: one text as both tokenizers cut it, chunk above chunk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_xtoken.cli.console import Json, StudentSpec, TeacherSpec, print_json, stdout, working
from nemo_xtoken.errors import DataError

if TYPE_CHECKING:
    from nemo_xtoken.tokenizers import Tokenizer
    from nemo_xtoken.types import Chunks, Encoding


def align(
    student: StudentSpec,
    teacher: TeacherSpec,
    text: Annotated[str | None, typer.Option(metavar="FILE|-", help="A UTF-8 file; - reads stdin.")] = None,
    sentence: Annotated[str | None, typer.Option(help="The text itself; by default one with numbers.")] = None,
    json: Json = False,
) -> None:
    """Show which tokens of two tokenizers cover the same bytes of a text."""
    from nemo_xtoken import alignment, tokenizers
    from nemo_xtoken.cli.token_rows import cells, print_rows

    content = read_text(text, sentence)
    with working("aligning"):
        sides = tokenizers.load(student), tokenizers.load(teacher)
        encodings = sides[0].encode(content), sides[1].encode(content)
        chunks = alignment.align(*encodings)
    if json:
        print_json(as_dict(sides, encodings, chunks))
        return
    print_rows(stdout, cells(content.encode(), sides, encodings, chunks))


def read_text(path: str | None, sentence: str | None) -> str:
    """The text that was asked for. Raises DataError where there is none."""
    if path is not None and sentence is not None:
        raise typer.BadParameter("expected --text or --sentence, got both.")
    if path is None and sentence is None:
        from nemo_xtoken.report.page import DEFAULT_SENTENCE

        return DEFAULT_SENTENCE
    content = sentence if sentence is not None else read_file(str(path))
    if not content:
        raise DataError(f"expected text, got none from {path or '--sentence'}")
    return content


def read_file(path: str) -> str:
    """A UTF-8 file, or stdin for "-", with its line ends as they are. Raises DataError."""
    if path != "-" and not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected a text file or - for stdin")
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got byte 0x{data[error.start]:02x} at {error.start}") from error


def as_dict(sides: tuple[Tokenizer, Tokenizer], encodings: tuple[Encoding, Encoding], chunks: Chunks) -> dict[str, Any]:
    """The alignment as plain data: tokens with byte spans, chunks with token spans, ends exclusive."""
    student, teacher = (
        {
            "spec": tokenizer.spec,
            "fingerprint": tokenizer.fingerprint,
            "ids": encoding.ids.tolist(),
            "starts": encoding.starts.tolist(),
            "ends": encoding.ends.tolist(),
        }
        for tokenizer, encoding in zip(sides, encodings, strict=True)
    )
    names = ("student_start", "student_end", "teacher_start", "teacher_end", "exact")
    return {
        "student": student,
        "teacher": teacher,
        "chunks": {name: getattr(chunks, name).tolist() for name in names},
    }
