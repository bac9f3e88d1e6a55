"""`nemo-xtoken plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_xtoken.cli.console import Json, print_json, stdout
from nemo_xtoken.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from nemo_xtoken.planning import Plan


def plan(
    config: Annotated[Path, typer.Argument(metavar="RUN", help="A run config in YAML.")],
    gpus: Annotated[int, typer.Option(help="How many there are.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="What to change in it, as for train.")
    ] = None,
    hardware: Annotated[str, typer.Option(help="Whose rates to take: a100, h100, h200 or b200.")] = "h100",
    json: Json = False,
) -> None:
    """Estimate memory, step time and bytes of a run, and say which kind of teacher to take."""
    from nemo_xtoken.config_io import load_run
    from nemo_xtoken.planning import HARDWARE, make_plan

    if hardware not in HARDWARE:
        raise ConfigError(f"--hardware: expected one of {', '.join(HARDWARE)}, got {hardware}")
    made = make_plan(load_run(config, overrides or ()), gpus, HARDWARE[hardware])
    if json:
        print_json(made.to_dict())
        return
    stdout.print(_table(made))
    names = ", ".join(f"{name} {count / 1e9:.2f} B" for name, count in made.parameters.items())
    stdout.print(f"parameters: {names}; {made.tokens_per_step:,} student tokens per step", soft_wrap=True)
    if len(made.estimates) > 1:
        stdout.print(
            f"a cache in bf16: {made.cache_bytes_per_token:,.0f} bytes per teacher token, "
            f"{made.cache_bytes / 1e12:.3g} TB for the tokens of this run",
            soft_wrap=True,
        )
    stdout.print(f"take {made.best}: {made.why}", soft_wrap=True)


def _table(made: Plan) -> Table:
    """A column for each kind of teacher."""
    from rich.table import Table

    possible = [estimate for estimate in made.estimates if not estimate.why_not]
    table = Table("on each GPU", *(estimate.kind for estimate in possible))
    for name in (*possible[0].memory.__dataclass_fields__, "total"):
        table.add_row(name.replace("_", " "), *(f"{getattr(e.memory, name) / 1e9:.2f} GB" for e in possible))
    table.add_section()
    for name in ("student", "teacher"):
        cells = [getattr(estimate, name) for estimate in possible]
        told = ["none" if not n else f"{n:,}: tp{tp} pp{pp} dp{dp}" for n, tp, pp, dp in cells]
        table.add_row(f"{name}'s GPUs", *told)
    table.add_row("offload", *(estimate.offload or "nothing" for estimate in possible))
    for name in ("student_seconds", "teacher_seconds", "step_seconds"):
        table.add_row(name.replace("_", " "), *(f"{getattr(e, name):.3g}" for e in possible))
    for name in ("wire_bytes", "disk_bytes"):
        table.add_row(f"{name.replace('_', ' ')} a step", *(f"{getattr(e, name) / 1e9:.3g} GB" for e in possible))
    return table
