"""`nemo-xtoken data prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_xtoken.cli.console import StudentSpec, byte_progress, stdout, working

if TYPE_CHECKING:
    from nemo_xtoken.data.manifest import Manifest

app = typer.Typer(help="Training text on disk.")


@app.callback()
def _group() -> None:
    """Training text on disk."""


@app.command("prepare")
def prepare(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Text files, JSON lines, or directories of them.")
    ],
    student: StudentSpec,
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    teacher: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The teacher's tokenizer; none: cross-entropy only.")
    ] = None,
    text_key: Annotated[str, typer.Option(help="The key of the text in JSON lines.")] = "text",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was prepared in OUT before.")] = False,
) -> None:
    """Tokenize text on both sides, align it and write it to disk."""
    from nemo_xtoken import data, tokenizers

    with working("loading the tokenizers"):
        sides = tokenizers.load(student), None if teacher is None else tokenizers.load(teacher)
    with byte_progress("preparing") as on_progress:
        manifest = data.prepare(inputs, out, *sides, text_key=text_key, overwrite=overwrite, on_progress=on_progress)
    stdout.print(summary(out, manifest), soft_wrap=True)


def summary(out: Path, manifest: Manifest) -> str:
    """What the directory holds, in one line."""
    line = (
        f"{out}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, {manifest.student.tokens:,} student tokens"
    )
    if manifest.teacher is not None:
        line += f", {manifest.teacher.tokens:,} teacher tokens, {manifest.chunks:,} chunks"
        line += f" ({100 * manifest.one_to_one_share:.1f} % one to one, {100 * manifest.inexact_share:.1f} % inexact)"
    if manifest.empty_documents:
        line += f"; {manifest.empty_documents:,} empty documents left out"
    return line + ("; already prepared" if manifest.reused else "")
