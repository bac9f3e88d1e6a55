"""`nemo-xtoken projection build` and `projection convert`, and the other commands about W."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_xtoken.cli import projection_audit, projection_show
from nemo_xtoken.cli.console import SPEC_HELP, StudentSpec, TeacherSpec, stdout, working

if TYPE_CHECKING:
    from nemo_xtoken.projection import ProjectionMatrix

app = typer.Typer(help="The projection matrix W of a tokenizer pair: build it, and see what it covers.")


@app.command("build")
def build(
    student: StudentSpec,
    teacher: TeacherSpec,
    out: Annotated[Path, typer.Option(help="The file to write (safetensors).")],
    top_k: Annotated[int, typer.Option(help="Most teacher tokens that a student token stands for.")] = 4,
    beta: Annotated[float, typer.Option(help="Weight of the first piece of a student token.")] = 0.9,
    gamma: Annotated[float, typer.Option(help="What each further piece weighs less.")] = 0.1,
    reverse_pass: Annotated[
        bool, typer.Option("--reverse-pass", help="Let teacher tokens without weight go to the student's pieces.")
    ] = False,
) -> None:
    """Build W for a tokenizer pair and write it to a file."""
    from nemo_xtoken import projection, tokenizers

    with working("building the projection"):
        pair = tokenizers.load(student), tokenizers.load(teacher)
        matrix = projection.build(*pair, top_k, beta, gamma, reverse_pass)
        matrix.save(out)
    stdout.print(summary(out, matrix), soft_wrap=True)
    for why, ids in projection.empty_rows(matrix, pair[0]).items():
        stdout.print(f"{len(ids):,} rows are empty: {why.explanation}", soft_wrap=True)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .pt file of NeMo-RL, or a file of projection build.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The other of the two.")],
    student: Annotated[str | None, typer.Option(metavar="SPEC", help=f"The student's tokenizer. {SPEC_HELP}")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="SPEC", help="The teacher's tokenizer, likewise.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Most entries of a row that are read from a .pt file.")] = 32,
) -> None:
    """Convert W from NeMo-RL's .pt files to this project's or back; a .pt file needs both tokenizers named."""
    if (source.suffix == ".pt") == (target.suffix == ".pt"):
        raise typer.BadParameter(f"expected one .pt file and one of another kind, got {source} and {target}.")
    if source.suffix != ".pt":
        matrix = export(source, target, student, teacher)
    elif student and teacher:
        matrix = import_(source, target, student, teacher, top_k)
    else:
        raise typer.BadParameter(f"{source} does not say which tokenizers it is for: give --student and --teacher.")
    stdout.print(summary(target, matrix), soft_wrap=True)


def import_(source: Path, target: Path, student: str, teacher: str, top_k: int) -> ProjectionMatrix:
    """NeMo-RL's file to this project's."""
    from nemo_xtoken import tokenizers
    from nemo_xtoken.projection import nemo_rl

    with working("reading the projection"):
        matrix = nemo_rl.read(source, tokenizers.load(student), tokenizers.load(teacher), top_k)
        matrix.save(target)
    return matrix


def export(source: Path, target: Path, student: str | None, teacher: str | None) -> ProjectionMatrix:
    """This project's file to NeMo-RL's; a tokenizer that is named must be the one that it was built for."""
    from nemo_xtoken import tokenizers
    from nemo_xtoken.projection import ProjectionMatrix, nemo_rl

    with working("writing the projection"):
        matrix = ProjectionMatrix.load(source)
        built_for = ((student, matrix.student_fingerprint), (teacher, matrix.teacher_fingerprint))
        matrix.check_pair(*(tokenizers.load(spec).fingerprint if spec else known for spec, known in built_for))
        nemo_rl.write(matrix, target)
    return matrix


def summary(path: Path, matrix: ProjectionMatrix) -> str:
    """A matrix and its file in one line."""
    rows, exact, empty = matrix.student_vocab_size, matrix.num_exact, matrix.num_empty
    return (
        f"{path}: {rows:,} student tokens onto {matrix.teacher_vocab_size:,} teacher tokens: "
        f"{exact:,} exact, {rows - exact - empty:,} projected, {empty:,} empty"
    )


app.command("show")(projection_show.show)
app.command("audit")(projection_audit.audit)
