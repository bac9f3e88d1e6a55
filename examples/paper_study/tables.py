"""The study's results as tables and plots: means over the seeds with intervals of 95 %."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from examples.paper_study.plan import Loss, Study, Trial
from examples.paper_study.runs import COUNTED, MEASURES, RESULTS, Line, best_rates, name_of, read_lines

BASELINE = "ce"
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""
HEADINGS = {
    "bits_per_byte": "bits per byte",
    "loss_multi_digit": "nats per numeral",
    "mass_multi_digit": "mass on numerals",
    "probability_multi_digit": "probability of the numeral",
    "loss/one_digit_numeral": "nats per digit",
    "loss_rest": "nats per other token",
    "exact_answers": "exact answers",
}
FAR = 1.5
"""A mean so many times the median of all is told as a number at the plot's edge, or the others would be one line."""
DIGITS = {"mass_multi_digit": 3, "probability_multi_digit": 3, "exact_answers": 3}


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % interval; NaN with one value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t over independent values."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan)
        return cls(mean, STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)))

    def write(self, digits: int, signed: bool = False) -> str:
        """`0.633 ± 0.012`."""
        mean = f"{self.mean:+.{digits}f}" if signed else f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{digits}f}"


def results(study: Study, setting: str) -> dict[str, list[Line]]:
    """The counted lines of each loss of a setting that has any, by seed."""
    losses = study.settings[setting].values()
    lines = {line["fingerprint"]: line for line in read_lines(COUNTED)}
    found: dict[str, list[Line]] = {}
    for loss in losses:
        known = [lines[name] for name in _names(study, setting, loss) if name in lines]
        if known:
            found[loss.name] = known
    return found


def markdown(study: Study, setting: str) -> str:
    """The table of a setting: a line for each loss, and how its bits per byte differ from those without a teacher."""
    found = results(study, setting)
    measures = [name for name in MEASURES if all(name in line for lines in found.values() for line in lines)]
    heading = ["loss", "rate", "seeds", *(HEADINGS[measure] for measure in measures), "bits per byte against alone"]
    rows = [_row(name, lines, found.get(BASELINE, []), measures) for name, lines in found.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heading, ["---"] * len(heading), *rows])


def differences(lines: Sequence[Line], baseline: Sequence[Line], measure: str) -> list[float]:
    """The measure minus the baseline's, for each seed that both have: one start, one order of samples."""
    alone = {line["seed"]: line[measure] for line in baseline}
    return [line[measure] - alone[line["seed"]] for line in lines if line["seed"] in alone]


def plot(study: Study, setting: str, folder: Path = RESULTS) -> Path | None:
    """Bits per byte and mass on numerals of each loss, a point a seed, as PNG; None where there are no results.

    Students that split all numerals have no mass on them: theirs is the loss on digits.
    """
    found = results(study, setting)
    if not found:
        return None
    everywhere = set.intersection(*(set(line) for lines in found.values() for line in lines))
    second = "mass_multi_digit" if "mass_multi_digit" in everywhere else "loss/one_digit_numeral"
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.9 + 0.32 * len(found)), sharey=True, layout="constrained")
    for axis, measure in zip(axes, ("bits_per_byte", second), strict=True):
        _draw(axis, found, measure)
    figure.suptitle(setting.replace("_", " "))
    path = folder / f"{setting}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw(axis: Axes, found: Mapping[str, Sequence[Line]], measure: str) -> None:
    limit = FAR * statistics.median(Interval.of([line[measure] for line in lines]).mean for lines in found.values())
    for row, lines in enumerate(found.values()):
        values = [line[measure] for line in lines]
        interval = Interval.of(values)
        if interval.mean > limit:
            edge = axis.get_yaxis_transform()
            axis.text(0.99, row, f"{interval.mean:.2f} →", transform=edge, ha="right", va="center")
            continue
        axis.plot(values, [row] * len(values), "o", color="#7a9cc6", markersize=4, alpha=0.8)
        axis.errorbar(interval.mean, row, xerr=interval.half, fmt="|", color="#1b2a41", capsize=3, markersize=12)
    axis.set_yticks(range(len(found)), [name.replace("_", " ") for name in found])
    axis.set_xlabel(HEADINGS[measure])
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", alpha=0.3)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()


def _row(name: str, lines: Sequence[Line], baseline: Sequence[Line], measures: Sequence[str]) -> list[str]:
    gains = [] if name == BASELINE else differences(lines, baseline, "bits_per_byte")
    gain = Interval.of(gains).write(3, signed=True) if gains else ""
    cells = [Interval.of([line[measure] for line in lines]).write(DIGITS.get(measure, 3)) for measure in measures]
    return [name, f"{lines[0]['rate']:g}", str(len(lines)), *cells, gain]


def _names(study: Study, setting: str, loss: Loss) -> Iterator[str]:
    """Fingerprints of a loss's counted trials, where its rate has been searched."""
    try:
        rate = best_rates(study, [(setting, loss)])[setting, loss.name]
    except KeyError:
        return
    for seed in study.seeds:
        yield name_of(study, Trial(setting, loss, rate, seed))
