"""`nemo-xtoken train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A run config in YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value ...]", help="What to change in it, such as optimizer.lr=1e-3 or teachers=[]."
        ),
    ] = None,
) -> None:
    """Train the student of a run; a run that was interrupted goes on where it was."""
    from nemo_xtoken.config_io import load_run

    run = load_run(config, overrides or ())
    from nemo_xtoken.integrations.megatron import launch  # takes seconds: a wrong config is told before

    launch(run)
