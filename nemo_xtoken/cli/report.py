"""`nemo-xtoken report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")],
    control: Annotated[Path | None, typer.Option(help="The run to compare with.")] = None,
    projection: Annotated[Path | None, typer.Option(help="The file of W; by default those of all teachers.")] = None,
    sentence: Annotated[str | None, typer.Option(help="The text whose alignment is shown.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in RUN_DIR.")] = None,
) -> None:
    """Write a run's losses, held-out numbers and tokenizer pair as one HTML page; prints its path."""
    from nemo_xtoken.report import write_report

    path = write_report(run_dir, control=control, projection=projection, sentence=sentence, out=out)
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()
