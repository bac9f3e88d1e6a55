"""`nemo-xtoken align`: one text as both tokenizers cut it, or a whole file in numbers."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_xtoken.cli.console import Json, StudentSpec, TeacherSpec, print_json, stdout, working
from nemo_xtoken.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from nemo_xtoken.data.chunk_counts import ChunkCounts
    from nemo_xtoken.tokenizers import Tokenizer
    from nemo_xtoken.types import Chunks, Encoding

KINDS = ("one_to_one", "one_to_many", "many_to_one", "many_to_many", "inexact")


class Aligner(StrEnum):
    """How chunks are found."""

    EXACT = "exact"
    DP = "dp"


def align(
    student: StudentSpec,
    teacher: TeacherSpec,
    text: Annotated[str | None, typer.Option(metavar="FILE|-", help="A UTF-8 file; - reads stdin.")] = None,
    sentence: Annotated[str | None, typer.Option(help="The text itself; by default one with numbers.")] = None,
    aligner: Annotated[
        Aligner, typer.Option(help="By bytes, or as in the paper by token strings (for comparison only).")
    ] = Aligner.EXACT,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the two rows as a page as well.")] = None,
    stats: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Count over the documents of a source instead.")
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(show_default="text", help="With --stats: the key or column of the text.")
    ] = None,
    json: Json = False,
) -> None:
    """Show which tokens of two tokenizers cover the same bytes of a text, or count over a file."""
    from nemo_xtoken import alignment, tokenizers

    if stats and (text is not None or sentence is not None or html is not None or aligner is Aligner.DP):
        raise typer.BadParameter("expected --stats alone, got --text, --sentence, --html or --aligner beside it.")
    if html is not None and aligner is Aligner.DP:
        raise typer.BadParameter("expected --aligner exact with --html, got dp.")
    if text_key is not None and not stats:
        raise typer.BadParameter("expected --text-key with --stats, got it alone.")
    content = "" if stats else read_text(text, sentence)
    with working("loading the tokenizers"):
        sides = tokenizers.load(student), tokenizers.load(teacher)
    if stats:
        print_counts(stats, sides, text_key or "text", json)
        return
    with working("aligning"):
        encodings = sides[0].encode(content), sides[1].encode(content)
        exact = aligner is Aligner.EXACT
        chunks = alignment.align(*encodings) if exact else alignment.align_dp(*encodings, *sides)
    if html is not None:
        from nemo_xtoken.report.alignment_page import write_alignment

        write_alignment(html, content, *sides)
    if json:
        print_json(as_dict(sides, encodings, chunks))
        return
    from nemo_xtoken.cli.token_rows import cells, print_rows

    print_rows(stdout, cells(content.encode(), sides, encodings, chunks))


def read_text(path: str | None, sentence: str | None) -> str:
    """The text that was asked for. Raises DataError for a file without any."""
    if path is not None and sentence is not None:
        raise typer.BadParameter("expected --text or --sentence, got both.")
    if path is None and sentence is None:
        from nemo_xtoken.report.pair import DEFAULT_SENTENCE

        return DEFAULT_SENTENCE
    if sentence == "":
        raise typer.BadParameter("expected text after --sentence, got none.")
    content = sentence or read_file(str(path))
    if not content:
        raise DataError(f"expected text, got none from {path}")
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


def print_counts(sources: list[str], sides: tuple[Tokenizer, Tokenizer], text_key: str, json: bool) -> None:
    """Count the chunks of whole files."""
    from nemo_xtoken.data.chunk_counts import count_chunks

    with working("aligning"):
        counts = count_chunks(sources, *sides, text_key=text_key)
    if json:
        print_json(asdict(counts))
    else:
        stdout.print(counts_table(counts))


def counts_table(counts: ChunkCounts) -> Table:
    """Chunks by kind, tokens in no chunk, and what a loss will see, with shares."""
    from rich.table import Table

    table = Table(f"{counts.documents:,} documents")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")

    def add(name: str, count: int, whole: int, of: str) -> None:
        table.add_row(name, f"{count:,}", f"{100 * count / max(whole, 1):.2f} % {of}")

    for kind in KINDS:
        add(kind.replace("_", " "), getattr(counts, kind), counts.chunks, "of chunks")
    if counts.empty_documents:
        whole = counts.documents + counts.empty_documents
        table.add_section()
        add("documents without tokens, left out", counts.empty_documents, whole, "of documents")
    table.add_section()
    add("student tokens in gaps", counts.student_gaps, counts.student_tokens, "of tokens")
    add("teacher tokens in gaps", counts.teacher_gaps, counts.teacher_tokens, "of tokens")
    table.add_section()
    add("chunks in the loss", counts.seen, counts.chunks, "of chunks")
    add("student tokens in the loss", counts.student_seen_tokens, counts.student_tokens, "of tokens")
    add("teacher tokens in the loss", counts.teacher_seen_tokens, counts.teacher_tokens, "of tokens")
    return table
