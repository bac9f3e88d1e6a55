"""`nemo-xtoken projection build` and `projection audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nemo_xtoken.cli.console import Json, StudentSpec, TeacherSpec, print_json, stdout, working

if TYPE_CHECKING:
    from nemo_xtoken.projection import Audit

app = typer.Typer(help="The projection matrix W of a tokenizer pair: build it, and see what it covers.")


@app.command("build")
def build(
    student: StudentSpec,
    teacher: TeacherSpec,
    out: Annotated[Path, typer.Option(help="The file to write (safetensors).")],
    top_k: Annotated[int, typer.Option(help="Most teacher tokens that a student token stands for.")] = 4,
    beta: Annotated[float, typer.Option(help="Weight of the first piece of a student token.")] = 0.9,
    gamma: Annotated[float, typer.Option(help="What each further piece weighs less.")] = 0.1,
) -> None:
    """Build W for a tokenizer pair and write it to a file."""
    from nemo_xtoken import projection, tokenizers

    with working("building the projection"):
        matrix = projection.build(tokenizers.load(student), tokenizers.load(teacher), top_k, beta, gamma)
        matrix.save(out)
    rows, exact, empty = matrix.student_vocab_size, matrix.num_exact, matrix.num_empty
    stdout.print(
        f"{out}: {rows:,} student tokens onto {matrix.teacher_vocab_size:,} teacher tokens: "
        f"{exact:,} exact, {rows - exact - empty:,} projected, {empty:,} empty",
        soft_wrap=True,
    )


@app.command("audit")
def audit(
    file: Annotated[Path, typer.Argument(help="A file made by projection build.")],
    student: Annotated[str | None, typer.Option(metavar="SPEC", help="Where the student's tokenizer is now.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="SPEC", help="Where the teacher's tokenizer is now.")] = None,
    json: Json = False,
) -> None:
    """Show how much of each kind of token is common to the pair, and which loss to take."""
    from nemo_xtoken import projection, tokenizers

    with working("auditing the projection"):
        matrix = projection.ProjectionMatrix.load(file)
        sides = tokenizers.load(student or matrix.student_spec), tokenizers.load(teacher or matrix.teacher_spec)
        result = projection.audit(matrix, *sides)
    if json:
        print_json(result.as_dict())
        return
    stdout.print(coverage_table(result))
    stdout.print(f"{result.num_exact:,} exact, {result.num_projected:,} projected, {result.num_empty:,} empty rows")
    stdout.print(result.reason, style="bold")


def coverage_table(audit: Audit) -> Table:
    """Common tokens per class of student tokens; critical classes that are not all common stand out."""
    from nemo_xtoken.projection import CRITICAL_CLASSES

    table = Table(title="Student tokens with an exact teacher token", title_justify="left")
    for heading in ("class", "tokens", "common", "share"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    table.add_column("not common, such as", overflow="ellipsis", no_wrap=True)
    for name, coverage in audit.classes.items():
        alarming = name in CRITICAL_CLASSES and coverage.uncommon
        examples = " ".join(repr(example)[1:-1] for example in coverage.uncommon_examples)
        share = f"{100 * coverage.common / coverage.total:.1f} %"
        cells = (name.label, f"{coverage.total:,}", f"{coverage.common:,}", share, examples.replace("[", r"\["))
        table.add_row(*cells, style="bold red" if alarming else "")
    return table
