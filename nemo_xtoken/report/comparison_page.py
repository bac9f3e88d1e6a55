"""Several runs side by side as one self-contained HTML page: held-out numbers, curves, and what differs in configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.config_io import flattened, load_run
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.report.class_losses import class_bars
from nemo_xtoken.report.curves import charts, legend
from nemo_xtoken.report.held_out import MEASURES, Measure
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.run_facts import totals
from nemo_xtoken.report.run_record import CONFIG_FILE, RunRecord, names

LACKING = "–"
TELLING = ("name", "kind", "mode", "recipe", "backend")
"""Keys that say in a word what a group of them is."""


@dataclass(frozen=True)
class Row:
    """One measure or key: its name and unit, the value of each run as text, and which of them are the best."""

    name: str
    unit: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


def write_comparison(runs: Sequence[RunRecord], path: Path) -> Path:
    """Write the page and return its path."""
    rows, problem = config_rows(runs)
    page = template("comparison.html.j2").render(
        legend=legend(runs),
        held_out=held_out_rows(runs),
        bar_charts=class_bars(runs),
        totals=totals_rows(runs),
        charts=charts(runs),
        config_rows=rows,
        problem=problem,
    )
    return write_page(path, page)


def held_out_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Every measure that one of the runs has."""
    records = [run.evaluation or {} for run in runs]
    return [_row(measure, records) for measure in MEASURES if any(r.get(measure.key) is not None for r in records)]


def _row(measure: Measure, records: Sequence[Mapping[str, Any]]) -> Row:
    values = [record.get(measure.key) for record in records]
    known = [measure.better * float(value) for value in values if value is not None]
    best = max(known) if measure.better and len(set(known)) > 1 else None
    return Row(
        measure.name,
        measure.unit,
        tuple(LACKING if value is None else measure.write(float(value)) for value in values),
        tuple(value is not None and measure.better * float(value) == best for value in values),
    )


def totals_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """The runs in a few numbers, a row for each that one of them has."""
    found = [dict(totals(run)) for run in runs]
    keys = dict.fromkeys(key for numbers in found for key in numbers)
    return [Row(key, "", tuple(numbers.get(key, LACKING) for numbers in found), (False,) * len(runs)) for key in keys]


def config_rows(runs: Sequence[RunRecord]) -> tuple[list[Row], str]:
    """The keys in which the runs' configs differ; a sentence about those that could not be read, whose cells are
    empty."""
    configs: list[Mapping[str, str] | None] = []
    problems: list[str] = []
    for name, run in zip(names(runs), runs, strict=True):
        try:
            configs.append(flattened(load_run(run.path / CONFIG_FILE)) if run.config_text else None)
            problems += [] if run.config_text else [f"{name} kept no config."]
        except XTokenError as error:
            configs.append(None)
            problems.append(f"The config of {name} could not be read: {error}.")
    known = [config for config in configs if config is not None]
    rows: list[Row] = []
    for key, values in differing(known).items():
        cells = iter(values)
        texts = tuple(LACKING if config is None else next(cells) for config in configs)
        rows.append(Row(key, "", texts, (False,) * len(runs)))
    return rows, " ".join(problems)


def differing(configs: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The values of each key that differs. A group of keys that some configs lack is one key, with what tells most.
    Directories are left out."""
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key != "run_dir"]
    found: dict[str, tuple[str, ...]] = {}
    for key in keys:
        having = [config for config in configs if key in config]
        groups = [_group_of(key, config) for config in configs if key not in config]
        if groups:
            group = min(groups, key=len)
            found[group] = tuple(_summary(group, config) for config in configs)
        if len({config[key] for config in having}) > 1:
            found[key] = tuple(config.get(key, LACKING) for config in configs)
    return found


def _group_of(key: str, lacking: Mapping[str, str]) -> str:
    """The largest group around a key of which a config that lacks the key has nothing, or only that it is empty."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        group = ".".join(parts[:count])
        if group in lacking or not any(other.startswith(f"{group}.") for other in lacking):
            return group
    return key


def _summary(group: str, config: Mapping[str, str]) -> str:
    """What a config has in a group, in a few words."""
    if config.get(group) == "[]":
        return "no teacher" if group == "teachers" else "none"
    if group in config:
        return config[group]
    told = [value for key, value in config.items() if key.startswith(f"{group}.") and key.rpartition(".")[2] in TELLING]
    return ", ".join(told) or LACKING
