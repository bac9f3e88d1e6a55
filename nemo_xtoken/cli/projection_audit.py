"""`nemo-xtoken projection audit`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nemo_xtoken.cli.console import Json, print_json, stdout, working

if TYPE_CHECKING:
    from nemo_xtoken.projection import Audit, ClassCoverage


def audit(
    file: Annotated[Path, typer.Argument(help="A file made by projection build.")],
    student: Annotated[str | None, typer.Option(metavar="SPEC", help="Where the student's tokenizer is now.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="SPEC", help="Where the teacher's tokenizer is now.")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=REGEX", help="Count the tokens whose whole text matches, too."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the audit as a page as well.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write its coverage as a picture as well.")] = None,
    json: Json = False,
) -> None:
    """Show how much of each kind of token is common to the pair, and which loss to take."""
    from nemo_xtoken import projection

    patterns = parse_classes(classes or ())
    if png is not None:
        from nemo_xtoken.report.picture import check_format

        check_format(png)
    with working("auditing the projection"):
        matrix = projection.ProjectionMatrix.load(file)
        sides = matrix.load_pair(student, teacher)
        result = projection.audit(matrix, *sides, patterns)
    if html is not None:
        from nemo_xtoken.report.pair import make_pair
        from nemo_xtoken.report.pair_page import write_pair

        write_pair(make_pair(matrix, *sides, result), html)
    if png is not None:
        from nemo_xtoken.report.audit_picture import write_picture

        write_picture(result, png)
    if json:
        print_json(result.as_dict())
    else:
        print_audit(result)


def parse_classes(texts: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """The classes that the user asks for, by name."""
    patterns: dict[str, re.Pattern[str]] = {}
    for name, pattern in map(parse_class, texts):
        if name in patterns:
            raise typer.BadParameter(f"expected each --class to have a name of its own, got {name} twice.")
        patterns[name] = pattern
    return patterns


def parse_class(text: str) -> tuple[str, re.Pattern[str]]:
    """A class that the user asks for, NAME=REGEX."""
    name, equals, pattern = text.partition("=")
    if not equals or not name or not name.isprintable():
        raise typer.BadParameter(f"expected --class NAME=REGEX, got {text!r}.")
    try:
        return name, re.compile(pattern)
    except re.error as error:
        raise typer.BadParameter(f"--class {name}: {pattern!r} is not a regular expression: {error}.") from error


def print_audit(audit: Audit) -> None:
    """Coverage, rows and the recommendation, for people."""
    stdout.print(coverage_table(audit))
    stdout.print(
        f"{audit.num_exact:,} exact, {audit.num_projected:,} projected, {audit.num_empty:,} empty rows; "
        f"{audit.num_unreached:,} teacher tokens that no row reaches",
        soft_wrap=True,
    )
    for why, rows in audit.empty.items():
        stdout.print(f"empty: {rows.total:,} {why.explanation}, such as {visible(rows.examples)}", soft_wrap=True)
    stdout.print(audit.reason, style="bold", soft_wrap=True)


def coverage_table(audit: Audit) -> Table:
    """Common tokens per class of student tokens; critical classes that are not all common stand out."""
    table = Table(title="Student tokens with an exact teacher token", title_justify="left", expand=True)
    for heading in ("class", "tokens", "common", "share"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    table.add_column("not common, such as", overflow="ellipsis", no_wrap=True, ratio=1)
    for label, coverage, critical in rows(audit):
        cells = (label, f"{coverage.total:,}", f"{coverage.common:,}", f"{100 * coverage.share:.1f} %")
        alarming = critical and coverage.uncommon
        table.add_row(*cells, visible(coverage.uncommon_examples), style="bold red" if alarming else "")
    return table


def rows(audit: Audit) -> Iterator[tuple[str, ClassCoverage, bool]]:
    """Label, coverage and whether the class is critical; the user's own classes come last."""
    from nemo_xtoken.projection import CRITICAL_CLASSES

    for name, coverage in audit.classes.items():
        yield name.label, coverage, name in CRITICAL_CLASSES
    for label, coverage in audit.user_classes.items():
        yield label, coverage, False


def visible(examples: Sequence[str]) -> str:
    """Texts of tokens in one line, with control characters shown."""
    return " ".join(repr(example)[1:-1] for example in examples)
