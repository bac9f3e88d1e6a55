"""`nemo-xtoken report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nemo_xtoken.cli.console import working


def report(
    subjects: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...|DATA_DIR|W.safetensors",
            help="A run; several runs, which are compared; prepared data; or a file made by projection build.",
        ),
    ],
    control: Annotated[Path | None, typer.Option(help="Of a run: the run to compare with.")] = None,
    projection: Annotated[
        Path | None, typer.Option(help="Of a run: the file of W; by default those of all teachers.")
    ] = None,
    sentence: Annotated[str | None, typer.Option(help="Of a run or W: the text whose alignment is shown.")] = None,
    student_length: Annotated[int | None, typer.Option(min=1, help="Of data: show the fill for this length.")] = None,
    teacher_length: Annotated[int | None, typer.Option(min=1, help="The same for the teachers' sequences.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The page; by default report.html in the directory, W's .html, or comparison.html."),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plots as one picture as well.")] = None,
) -> None:
    """Write one self-contained HTML page about a run, several runs, prepared data or W; prints its path."""
    from nemo_xtoken.report import PageOptions, write_page_of

    options = PageOptions(
        control=control,
        projection=projection,
        sentence=sentence,
        student_length=student_length,
        teacher_length=teacher_length,
    )
    with working("making the page"):
        path = write_page_of(subjects, options, out, png)
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()
