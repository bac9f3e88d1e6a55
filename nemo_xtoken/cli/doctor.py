"""`nemo-xtoken doctor`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from nemo_xtoken.cli.console import Json, print_json, stdout, working

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nemo_xtoken.doctor import Status

SIGNS = {"ready": ("✓", "green"), "missing": ("✗", "yellow"), "not in this version": ("–", "dim")}


def doctor(json: Json = False) -> None:
    """Show what this machine has, and which features can run on it."""
    from nemo_xtoken.doctor import examine, statuses

    with working("looking around"):
        machine = examine()
        found = statuses(machine)
    if json:
        print_json({**dataclasses.asdict(machine), "features": [dataclasses.asdict(status) for status in found]})
        return
    for title, facts in machine.sections().items():
        stdout.print(facts_table(title, facts))
    stdout.print(features_table(found))


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Names and values without lines."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(width=20)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def features_table(found: list[Status]) -> Table:
    """One line per feature: whether it can run here, else what is missing."""
    table = Table(
        title="Features", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for status in found:
        sign, style = SIGNS[status.state]
        table.add_row(sign, status.feature, status.detail, style=style)
    return table
