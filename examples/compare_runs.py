"""Compare the held-out numbers of runs in one table.

    python examples/compare_runs.py RUN_DIR RUN_DIR ... [--json]

reads the evaluation.json that `nemo-xtoken evaluate` left in each. Runs whose names differ only in a number at the end,
such as distilled-1 and distilled-2, are seeds of one run: their mean follows them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nemo_xtoken.errors import DataError, XTokenError
from nemo_xtoken.report.held_out import MEASURES
from nemo_xtoken.report.run_record import read_run

Numbers = Mapping[str, Any]
COLUMNS = tuple(measure for measure in MEASURES if measure.better)
HEADINGS = {
    "bits_per_byte": "bits per\nbyte",
    "loss_multi_digit": "nats per\nnumeral",
    "loss_rest": "nats per\nother token",
    "probability_multi_digit": "right\nnumeral",
    "mass_multi_digit": "mass on\nnumerals",
    "exact_answers": "exact\nanswers",
}
TITLE = "On held-out text (numerals: tokens of several digits)"


def read_evaluation(run_dir: Path) -> Numbers:
    """The held-out numbers of a run. Raises DataError where there are none."""
    evaluation = read_run(run_dir).evaluation
    if evaluation is None:
        raise DataError(f"{run_dir} has no evaluation.json: run `nemo-xtoken evaluate {run_dir}` first")
    return evaluation


def means(runs: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """The mean of each group of seeds with at least two runs, by the group's name."""
    groups: dict[str, list[Numbers]] = {}
    for name, numbers in runs.items():
        groups.setdefault(re.sub(r"[-_]?\d+$", "", name), []).append(numbers)
    return {f"{name}, mean": mean_of(group) for name, group in groups.items() if len(group) > 1}


def mean_of(group: Sequence[Numbers]) -> Numbers:
    """The mean of each measure that every run of the group has."""
    keys = [measure.key for measure in COLUMNS if all(numbers.get(measure.key) is not None for numbers in group)]
    return {key: sum(float(numbers[key]) for numbers in group) / len(group) for key in keys}


def as_table(runs: Mapping[str, Numbers], averages: Mapping[str, Numbers]) -> Table:
    """One line per run, then the means."""
    table = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for measure in COLUMNS:
        table.add_column(HEADINGS[measure.key], justify="right")
    for name, numbers in runs.items():
        table.add_row(name, *cells(numbers))
    table.add_section()
    for name, numbers in averages.items():
        table.add_row(name, *cells(numbers), style="bold")
    return table


def cells(numbers: Numbers) -> list[str]:
    """The measures of a run as they are written; a dash for one that was not measured."""
    values = [(measure, numbers.get(measure.key)) for measure in COLUMNS]
    return ["–" if value is None else measure.write(float(value)) for measure, value in values]


def main() -> int:
    """Print the table; 1 with one line on stderr where a run was not evaluated."""
    parser = argparse.ArgumentParser(description="Compare the held-out numbers of runs.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    try:
        runs = {run_dir.name: read_evaluation(run_dir) for run_dir in arguments.run_dirs}
    except XTokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    averages = means(runs)
    if arguments.json:
        print(json.dumps({"runs": runs, "means": averages}))
    else:
        Console().print(as_table(runs, averages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
