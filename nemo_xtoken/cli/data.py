"""`nemo-xtoken data prepare` and `data inspect`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_xtoken.cli.console import Json, StudentSpec, byte_progress, print_json, stderr, stdout, working

if TYPE_CHECKING:
    from rich.table import Table

    from nemo_xtoken.data import Manifest, Statistics

app = typer.Typer(help="Training text on disk.")


class OnError(StrEnum):
    """What to do about text that cannot be used."""

    STOP = "stop"
    SKIP = "skip"


@app.callback()
def _group() -> None:
    """Training text on disk."""


@app.command("prepare")
def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files (.txt, .jsonl, either with .gz; .parquet; Megatron's .bin with .idx), folders of text files "
            "and tables, Hugging Face datasets on disk, or on the hub: hf:OWNER/NAME\\[@REVISION]\\[/FOLDER].",
        ),
    ],
    student: StudentSpec,
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SPEC",
            help="A teacher's tokenizer, once for each teacher; none: cross-entropy only. Default names: "
            "teacher, teacher-2, and so on.",
        ),
    ] = None,
    text_key: Annotated[str | None, typer.Option(show_default="text", help="The key or column of the text.")] = None,
    prompt_key: Annotated[
        str | None, typer.Option(help="The key or column of a prompt, which comes first and is not learnt.")
    ] = None,
    completion_key: Annotated[
        str | None, typer.Option(help="The key or column of what follows the prompt: the text, by another name.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a document or file that cannot be used: stop, or count it and go on.")
    ] = OnError.STOP,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th source, from the I-th on: one job of an array.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was prepared in OUT before.")] = False,
) -> None:
    """Tokenize text on all sides, align it and write it to disk. Interrupted, the same command goes on."""
    from nemo_xtoken import data, tokenizers
    from nemo_xtoken.data.teacher_names import named_values

    if text_key is not None and completion_key is not None:
        raise typer.BadParameter("expected --text-key or --completion-key, which mean the same, got both.")
    if "" in inputs:
        raise typer.BadParameter("expected the path of an input, got an empty one; name the current folder as .")
    specs = named_values(teacher or [], "teacher")
    with working("loading the tokenizers"):
        teachers = {name: tokenizers.load(spec) for name, spec in specs.items()}
        loaded = tokenizers.load(student)
    sources = inputs if part is None else data.part_of(inputs, part)
    with byte_progress("preparing") as on_progress:
        manifest = data.prepare(
            sources,
            out,
            loaded,
            teachers,
            text_key=completion_key or text_key or "text",
            prompt_key=prompt_key,
            on_error=on_error.value,
            workers=workers or len(os.sched_getaffinity(0)),
            overwrite=overwrite,
            on_progress=on_progress,
        )
    for example in manifest.skipped_examples:
        stderr.print(f"skipped: {example}", markup=False, soft_wrap=True)
    stdout.print(summary(out, manifest), markup=False, soft_wrap=True)


@app.command("inspect")
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared data.")],
    student_length: Annotated[
        int | None, typer.Option(min=2, help="Pack into student sequences of this many tokens.")
    ] = None,
    teacher_length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]LENGTH",
            help="The teachers'; by default the same. One for all, or once for each teacher by its name.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what prepared data holds, and how well it fills sequences."""
    from dataclasses import asdict

    from nemo_xtoken import data

    lengths = sequence_lengths(student_length, teacher_length or [])
    with working("reading the data"):
        statistics = data.inspect(directory, lengths)
    if json:
        print_json(asdict(statistics))
        return
    stdout.print(summary(directory, statistics.manifest), markup=False, soft_wrap=True)
    stdout.print(statistics_table(statistics))


def sequence_lengths(
    student_length: int | None, teacher_lengths: Sequence[str]
) -> tuple[int, int | dict[str, int]] | None:
    """The student's and the teachers' sequence lengths, each in the place of the other where that is not given."""
    from nemo_xtoken.data.teacher_names import whole_numbers

    teachers = whole_numbers(teacher_lengths)
    longest = teachers if isinstance(teachers, int) else max(teachers.values(), default=0)
    student = student_length or longest
    return (student, teachers or student) if student else None


def summary(out: Path, manifest: Manifest) -> str:
    """What the directory holds, in one line."""
    line = (
        f"{out}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, {manifest.student.tokens:,} student tokens"
    )
    for teacher in manifest.teachers:
        name = "teacher" if len(manifest.teachers) == 1 else teacher.name
        line += f", {teacher.tokens:,} {name} tokens, {teacher.chunks:,} chunks"
        line += f" ({100 * teacher.one_to_one_share:.1f} % one to one, {100 * teacher.inexact_share:.1f} % inexact)"
    if manifest.empty_documents:
        line += f"; {manifest.empty_documents:,} empty documents left out"
    if manifest.skipped_documents:
        line += f"; {manifest.skipped_documents:,} documents or files skipped, since they could not be used"
    return line + ("; already prepared" if manifest.reused else "")


def statistics_table(statistics: Statistics) -> Table:
    """Lengths of the documents and fill, a column for each side."""
    from rich.table import Table

    sides = [statistics.student, *statistics.teachers]
    names = statistics.manifest.teacher_names
    table = Table("tokens", "student", *(names if len(names) > 1 else ["teacher"] * len(names)))
    for name in ("total", "mean", "median", "percentile_95", "longest"):
        table.add_row(name.replace("_", " "), *(f"{getattr(side, name):,.0f}" for side in sides))
    table.add_row("learnt", f"{100 * statistics.learnt_share:.1f} %")
    fill = statistics.fill
    if fill is not None:
        lengths, shares = (fill.student_sequence_length, *fill.teacher_sequence_lengths), (fill.student, *fill.teachers)
        table.add_section()
        table.add_row("sequence length", *(f"{length:,}" for length in lengths))
        table.add_row("fill", *(f"{100 * share:.2f} %" for share in shares))
        table.add_row("sequences", f"{fill.samples:,}")
        table.add_row("documents split", f"{fill.split_documents:,}")
        table.add_row("chunks dropped", f"{fill.dropped_chunks:,}")
        if fill.prompt_pieces:
            table.add_row("pieces of prompt alone, left out", f"{fill.prompt_pieces:,}")
    return table
