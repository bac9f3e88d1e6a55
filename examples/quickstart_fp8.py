"""The quickstart's student in emulated FP8, every recipe beside fp32, with several seeds: runs, table and curve.

    python examples/quickstart_fp8.py [--seeds 1 2 3] [--tp 1 2] [--recipes delayed ...] [--folder DIR] [KEY=VALUE ...]
    python examples/quickstart_fp8.py --table [--folder DIR] [KEY=VALUE ...]

KEY=VALUE changes every run, such as train.steps=60. Runs are trained one after the other; each that has ended is a line
of DIR/runs.jsonl, and no such run is trained again. Stopped at any moment, the same command goes on where it was.

The teacher's hidden states are stored once, in fp32: all runs read the same 300 problems ten times.

bits_per_byte  of the held-out text, with the weights as they are, multiplied in fp32
curve          [step, nats per token] of the training text, means over 10 steps: in FP8 where the run is
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image

from nemo_xtoken.errors import DataError, XTokenError
from nemo_xtoken.report.run_record import read_run

Line = dict[str, Any]
Points = list[tuple[float, float]]

CONTROL = "fp32"
RECIPES = ("delayed", "current", "blockwise", "mxfp8")
COLOURS = {
    CONTROL: "#1b2a41", "delayed": "#c8553d", "current": "#d9a404", "blockwise": "#2a7f62", "mxfp8": "#4a7bb7"
}  # fmt: skip
RESULTS = "runs.jsonl"
QUICKSTART = "examples/quickstart.yaml"
TEACHER, HELD_OUT = Path("quickstart/teacher"), "quickstart/data/heldout"
CHEAPER = ("teachers.0.kind=cached", "train.checkpoint_interval=0", "train.log_interval=20")
"""What the quickstart's run does beside learning, done once or less often; the last step has a checkpoint anyway."""
STEPS = 10
"""Of a point of the curve."""
WITHIN = 1.0
"""Percent of the control's held-out loss that FP8 may cost."""


@dataclass(frozen=True)
class Run:
    """One run; `changes` are KEY=VALUE."""

    recipe: str
    tp: int
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def key(self) -> Line:
        """What its line begins with."""
        return {"recipe": self.recipe, "tp": self.tp, "seed": self.seed, "changes": list(self.changes)}

    def folder(self, above: Path) -> Path:
        """Its run_dir."""
        return above / f"{self.recipe}-tp{self.tp}-{self.seed}"

    def overrides(self, above: Path) -> list[str]:
        """What makes it of the quickstart's run."""
        fp8 = [] if self.recipe == CONTROL else [f"fp8={{recipe: {self.recipe}, backend: emulate}}"]
        return [
            f"run_dir={self.folder(above)}",
            f"train.seed={self.seed}",
            f"data.seed={self.seed}",
            f"parallel.tensor_model_parallel_size={self.tp}",
            *CHEAPER,
            *fp8,
            *self.changes,
        ]


def planned(seeds: Sequence[int], sizes: Sequence[int], recipes: Sequence[str], changes: Sequence[str]) -> list[Run]:
    """All runs: one rank before two, the control first."""
    return [Run(recipe, tp, seed, tuple(changes)) for tp in sizes for seed in seeds for recipe in (CONTROL, *recipes)]


def read_lines(file: Path) -> list[Line]:
    """The lines of a results file, none where it isn't there. Raises DataError for one that is no JSON object."""
    lines: list[Line] = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), start=1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}:{number}: expected a JSON object, got {text[:60]!r}: remove the line") from error
    return lines


def missing(runs: Sequence[Run], lines: Sequence[Line]) -> list[Run]:
    """The runs without a line."""
    return [run for run in runs if not any(run.key.items() <= line.items() for line in lines)]


def execute(run: Run, above: Path) -> Line:
    """Train and evaluate a run, from where it was stopped. Returns its line; raises XTokenError where it fails."""
    began = run.folder(above).exists()
    before = cpu_seconds()
    call("train", QUICKSTART, *run.overrides(above))
    trained = cpu_seconds() - before
    call("evaluate", str(run.folder(above)), "--data", HELD_OUT)
    return run.key | measured(run.folder(above)) | circumstances() | {"cpu_seconds": None if began else round(trained)}


def call(*arguments: str) -> None:
    """A command of nemo-xtoken. Raises XTokenError where it fails."""
    result = subprocess.run(["nemo-xtoken", *arguments], check=False)
    if result.returncode:
        raise XTokenError(f"nemo-xtoken {' '.join(arguments)} ended with {result.returncode}; its message is above")


def cpu_seconds() -> float:
    """Of all commands so far, their ranks included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(run_dir: Path) -> Line:
    """Held-out numbers of a run that has ended. Raises DataError where there are none."""
    record = read_run(run_dir)
    if record.evaluation is None:
        raise DataError(f"{run_dir} has no evaluation.json: run `nemo-xtoken evaluate {run_dir}` first")
    return {"bits_per_byte": record.evaluation["bits_per_byte"], "curve": thinned(record.curve("ce"))}


def thinned(points: Points) -> Points:
    """The mean of each so many steps, at the last of them."""
    groups = [points[start : start + STEPS] for start in range(0, len(points), STEPS)]
    return [(int(group[-1][0]), round(statistics.fmean(value for _, value in group), 6)) for group in groups]


def circumstances() -> Line:
    """When, of which commit, and under which load of the machine."""
    described = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": described.stdout.strip(),
        "load": round(os.getloadavg()[0], 1),
    }


def append(file: Path, line: Line) -> None:
    """Add a line to the results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def pairs(lines: Sequence[Line], recipe: str, tp: int) -> list[tuple[Line, Line]]:
    """Each run of a recipe, by seed, with what it is held against: the control of the same seed and ranks.

    A control on several ranks is held against the one on the fewest, whose sums have another order: that is the noise.
    """
    fewest = min(line["tp"] for line in lines)
    if recipe == CONTROL and tp == fewest:
        return []
    against = fewest if recipe == CONTROL else tp
    controls = {line["seed"]: line for line in lines if (line["recipe"], line["tp"]) == (CONTROL, against)}
    return [(line, controls[line["seed"]]) for line in runs_of(lines, recipe, tp) if line["seed"] in controls]


def runs_of(lines: Sequence[Line], recipe: str, tp: int) -> list[Line]:
    """The lines of a recipe on so many ranks, by seed."""
    return sorted((line for line in lines if (line["recipe"], line["tp"]) == (recipe, tp)), key=lambda one: one["seed"])


def costs(lines: Sequence[Line], recipe: str, tp: int) -> list[float]:
    """By how many percent the held-out loss of a recipe's runs is above that of their controls."""
    return [100 * (own["bits_per_byte"] / other["bits_per_byte"] - 1) for own, other in pairs(lines, recipe, tp)]


def markdown(lines: Sequence[Line]) -> str:
    """A row for each recipe and number of ranks: its loss by seed, and what FP8 costs."""
    heading = ["recipe", "ranks", "held-out bits per byte by seed", "against fp32", "mean", f"within {WITHIN:g} %"]
    rows = [heading, ["---"] * len(heading), *rows_of(lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def rows_of(lines: Sequence[Line]) -> Iterator[list[str]]:
    """The table's cells."""
    for tp in sorted({line["tp"] for line in lines}):
        for recipe in (CONTROL, *RECIPES):
            if own := runs_of(lines, recipe, tp):
                losses = ", ".join(f"{line['bits_per_byte']:.4f}" for line in own)
                yield [recipe, str(tp), losses, *difference_cells(costs(lines, recipe, tp))]


def difference_cells(percent: Sequence[float]) -> list[str]:
    """By seed, the mean with its standard error, and what of it is within the bound."""
    if not percent:
        return ["", "", ""]
    mean = f"{statistics.fmean(percent):+.2f} %"
    if len(percent) > 1:
        mean += f" ± {statistics.stdev(percent) / len(percent) ** 0.5:.2f}"
    within = "all" if max(map(abs, percent)) <= WITHIN else "mean" if abs(statistics.fmean(percent)) <= WITHIN else "no"
    return [", ".join(f"{one:+.2f} %" for one in percent), mean, within]


def plot(lines: Sequence[Line], path: Path) -> None:
    """The training loss over steps of every recipe, and by how many percent it is above fp32's, as PNG."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for recipe in (CONTROL, *RECIPES):
        draw(left, [line["curve"] for line in lines if line["recipe"] == recipe], recipe)
    for recipe in (*RECIPES, CONTROL):
        draw(right, differences(lines, recipe), recipe, each=True)
    left.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
    left.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    left.tick_params(which="minor", labelleft=False)
    left.legend(frameon=False)
    right.axhline(0, color="#8a8f98", linewidth=1)
    right.set(xlabel="step", ylabel="above fp32 of the same seed, %")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size


def draw(axis: Axes, curves: Sequence[Points], recipe: str, *, each: bool = False) -> None:
    """The mean of some curves, and each of them faintly."""
    if not curves:
        return
    steps = [step for step, _ in curves[0]]
    for curve in curves if each else ():
        axis.plot(*zip(*curve, strict=True), color=COLOURS[recipe], linewidth=0.5, alpha=0.35)
    values = [[value for _, value in points] for points in zip(*curves, strict=True)]
    axis.plot(steps, [*map(statistics.fmean, values)], color=COLOURS[recipe], linewidth=1.6, label=recipe)


def differences(lines: Sequence[Line], recipe: str) -> list[Points]:
    """[step, percent above its control] of each of a recipe's runs."""
    sizes = sorted({line["tp"] for line in lines})
    both = [(own["curve"], other["curve"]) for tp in sizes for own, other in pairs(lines, recipe, tp)]
    return [
        [(step, 100 * (value / other - 1)) for (step, value), (_, other) in zip(own, control, strict=True)]
        for own, control in both
    ]


def train_missing(runs: Sequence[Run], folder: Path) -> None:
    """Train what the results lack. Raises XTokenError where the quickstart's teacher is missing, or a run fails."""
    left = missing(runs, read_lines(folder / RESULTS))
    if left and not TEACHER.is_dir():
        raise XTokenError(f"{TEACHER} is missing: run examples/quickstart.sh first")
    if left:
        call("teacher", "cache", QUICKSTART, "--store", "fp32", "parallel.tensor_model_parallel_size=1")
    for number, run in enumerate(left, start=1):
        print(f"{number}/{len(left)}  {run.folder(folder)}", flush=True)
        append(folder / RESULTS, execute(run, folder))


def main() -> int:
    """Train what is missing, print the table and draw the curve; 1 with one line on stderr where that fails."""
    parser = argparse.ArgumentParser(
        description="The quickstart's student in emulated FP8, beside fp32.", epilog="KEY=VALUE ... changes every run"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tp", nargs="+", type=int, default=[1, 2], help="numbers of tensor-parallel ranks")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--folder", type=Path, default=Path("quickstart/fp8"), help="of the runs and their results")
    parser.add_argument("--table", action="store_true", help="train nothing: the table and the curve of what is there")
    changes = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in changes])
    file = arguments.folder / RESULTS
    try:
        if not arguments.table:
            train_missing(planned(arguments.seeds, arguments.tp, arguments.recipes, changes), arguments.folder)
        lines = [line for line in read_lines(file) if line["changes"] == changes]
    except XTokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not lines:
        print(f"error: {file} has no run with these changes; run it without --table", file=sys.stderr)
        return 1
    print(markdown(lines))
    plot(lines, arguments.folder / "curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
