"""What a run has left in its directory."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import DataError, XTokenError

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
CONFIG_FILE = "config.yaml"
SIGNS = (CONFIG_FILE, METRICS_FILE, EVALUATION_FILE, "checkpoints", "launch")
"""What tells that a directory is that of a run."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run, read back.

    metrics      one record per logged step, by step; a step that was run again after a restart counts once
    evaluation   held-out numbers; None before `nemo-xtoken evaluate`
    config_text  the run's config as YAML; None where the run kept none
    """

    path: Path
    metrics: tuple[Record, ...]
    evaluation: Record | None
    config_text: str | None

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one metric, where it was logged and is finite."""
        points = [(float(record["step"]), float(record[key])) for record in self.metrics if record.get(key) is not None]
        return [(step, value) for step, value in points if math.isfinite(value)]

    def lapses(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric where it was logged and is NaN or infinite."""
        values = [(int(record["step"]), record.get(key)) for record in self.metrics]
        return [(step, float(value)) for step, value in values if value is not None and not math.isfinite(value)]

    @property
    def keys(self) -> list[str]:
        """Everything that was logged, in the order of its first time."""
        return [key for key in dict.fromkeys(key for record in self.metrics for key in record) if key != "step"]

    @functools.cached_property
    def config(self) -> RunConfig | None:
        """The run's config; None where the run kept none that can be read."""
        try:
            return load_run(self.path / CONFIG_FILE, ()) if self.config_text else None
        except XTokenError:
            return None

    @property
    def steps(self) -> tuple[int, int | None]:
        """The last step that was logged, 0 where there is none, and the number of those that were planned."""
        last = int(self.metrics[-1]["step"]) if self.metrics else 0
        return last, self.config.train.steps if self.config else None


def names(runs: Sequence[RunRecord]) -> list[str]:
    """The name of each run's directory; where two are alike, its path as given."""
    short = [run.name for run in runs]
    return [str(run.path) if short.count(run.name) > 1 else run.name for run in runs]


def is_run(path: Path) -> bool:
    """Whether a directory has anything that a run leaves."""
    return any((path / name).exists() for name in SIGNS)


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises DataError where it isn't there or a file in it is damaged.
    """
    if not path.is_dir():
        raise DataError(f"expected the directory of a run, got {str(path)!r}, which is none: give a run's run_dir")
    if not is_run(path):
        raise DataError(f"expected the directory of a run, got {str(path)!r}, which has none of {', '.join(SIGNS)}")
    config_path = path / CONFIG_FILE
    return RunRecord(
        path=path,
        metrics=read_metrics(path / METRICS_FILE),
        evaluation=read_evaluation(path / EVALUATION_FILE),
        config_text=config_path.read_text(encoding="utf-8") if config_path.is_file() else None,
    )


def read_metrics(path: Path) -> tuple[Record, ...]:
    """The records of a metrics file by step. A last line that a killed run left half written is passed over."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    by_step: dict[int, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            by_step[int(record["step"])] = record
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise DataError(
                    f"{path}:{number}: expected a JSON object with a step, got {line[:60]!r}: remove the line"
                ) from error
    return tuple(by_step[step] for step in sorted(by_step))


def read_lines(path: Path) -> list[Record]:
    """The JSON objects of a file of lines; what a killed process left half written is passed over."""
    found: list[Record] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            found += [entry] if isinstance(entry, dict) else []
    return found


def read_evaluation(path: Path) -> Record | None:
    """The held-out numbers of a run, or None where it was never evaluated."""
    if not path.is_file():
        return None
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, got a damaged file: run `nemo-xtoken evaluate` again") from error
    if not isinstance(evaluation, dict):
        raise DataError(
            f"{path}: expected a JSON object, got {type(evaluation).__name__}: run `nemo-xtoken evaluate` again"
        )
    return evaluation
