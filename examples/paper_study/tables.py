"""The study's results as tables and plots: means over the seeds with intervals of 95 %."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from examples.paper_study.plan import Loss, Study, Trial
from examples.paper_study.runs import COUNTED, RESULTS, Line, best_rates, name_of, read_lines
from nemo_xtoken.errors import ConfigError

BASELINE = "ce"
"""The usual one: cross-entropy alone."""
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Column:
    """How a measure is told: as it is or in percent, and with so many digits after the point."""

    heading: str
    digits: int
    percent: bool = False

    def write(self, values: Sequence[float], signed: bool = False) -> str:
        """`0.633 ± 0.012`, `71.3 ± 0.4 %`: the mean and half the width of its interval."""
        return Interval.of(self.shown(values)).write(self.digits, signed) + (" %" if self.percent else "")

    def shown(self, values: Sequence[float]) -> list[float]:
        """The values in the column's unit."""
        return [100 * value for value in values] if self.percent else list(values)


COLUMNS = {
    "bits_per_byte": Column("bits per byte", 3),
    "mass_multi_digit": Column("probability of any numeral where one follows", 1, percent=True),
    "probability_multi_digit": Column("of the right one", 1, percent=True),
    "loss_multi_digit": Column("nats per numeral", 2),
    "loss/one_digit_numeral": Column("nats per digit", 3),
    "loss_rest": Column("nats per other token", 2),
    "exact_answers": Column("exact answers", 1, percent=True),
}
MAIN, OF_NUMERALS, OF_DIGITS = "bits_per_byte", "mass_multi_digit", "loss/one_digit_numeral"
FAR = 1.5
"""A mean so many times the median of all is told as a number at the plot's edge, or the others would be one line."""


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
        shown = round(self.mean, digits) or 0.0  # no minus before a zero
        mean = (f"{shown:+.{digits}f}" if signed and shown else f"{shown:.{digits}f}").replace("-", "−")
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
    """The table of a setting: a line for each loss, the best first, or the baseline where the setting has its own."""
    found = ranked(study, setting)
    baseline = study.baselines[setting]
    counts = {len(lines) for lines in found.values()}
    against = "none" if baseline == BASELINE else "the first"
    heading = [study.compares[setting], *(["seeds"] if len(counts) > 1 else []), COLUMNS[MAIN].heading]
    measures = told(found)
    heading += [f"against {against}, seed by seed", *(COLUMNS[measure].heading for measure in measures[1:])]
    rows: list[list[str]] = []
    for name, lines in found.items():
        main, *others = (COLUMNS[measure].write([line[measure] for line in lines]) for measure in measures)
        gains = [] if name == baseline else differences(lines, found.get(baseline, []), MAIN)
        gain = COLUMNS[MAIN].write(gains, signed=True) if gains else ""
        rows.append([study.titles[name], *([str(len(lines))] if len(counts) > 1 else []), main, gain, *others])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heading, ["---"] * len(heading), *rows])


def ranked(study: Study, setting: str) -> dict[str, list[Line]]:
    """The results of a setting, the fewest bits per byte first; as in study.yaml where it has a baseline of its own."""
    found = results(study, setting)
    if study.baselines[setting] != BASELINE:
        return found
    return dict(sorted(found.items(), key=lambda item: Interval.of([line[MAIN] for line in item[1]]).mean))


def told(found: Mapping[str, Sequence[Line]]) -> list[str]:
    """The measures that all lines have. Digits are told where the students have no other numerals."""
    everywhere = set.intersection(*(set(line) for lines in found.values() for line in lines)) if found else set[str]()
    left_out = OF_DIGITS if OF_NUMERALS in everywhere else ""
    return [measure for measure in COLUMNS if measure in everywhere and measure != left_out]


def comparison(study: Study, first: str, second: str) -> dict[str, str]:
    """Each measure of one `SETTING/LOSS` less that of another, by seed. Raises ConfigError where there are none."""
    ours, theirs = (_lines(study, name) for name in (first, second))
    if not differences(ours, theirs, MAIN):
        raise ConfigError(f"{first} and {second} have no seed in common; run more with `run.sh run --seeds N`")
    return {
        measure: COLUMNS[measure].write(differences(ours, theirs, measure), signed=True)
        for measure in told({"first": ours, "second": theirs})
    }


def differences(lines: Sequence[Line], baseline: Sequence[Line], measure: str) -> list[float]:
    """The measure minus the baseline's, for each seed that both have: one start, one order of samples."""
    other = {line["seed"]: line[measure] for line in baseline}
    return [line[measure] - other[line["seed"]] for line in lines if line["seed"] in other]


def plot(study: Study, setting: str, folder: Path = RESULTS) -> Path | None:
    """Bits per byte and mass on numerals of each loss, a point a seed, as PNG; None where there are no results.

    Students that split all numerals have no mass on them: theirs is the loss on digits.
    """
    found = ranked(study, setting)
    if not found:
        return None
    second = OF_NUMERALS if OF_NUMERALS in told(found) else OF_DIGITS
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 1.1 + 0.32 * len(found)), sharey=True, layout="constrained")
    titled = {study.titles[name].replace("`", ""): lines for name, lines in found.items()}
    for axis, measure in zip(axes, (MAIN, second), strict=True):
        _draw(axis, titled, measure)
    figure.suptitle(setting.replace("_", " "))
    path = folder / f"{setting}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw(axis: Axes, found: Mapping[str, Sequence[Line]], measure: str) -> None:
    column = COLUMNS[measure]
    shown = {title: column.shown([line[measure] for line in lines]) for title, lines in found.items()}
    limit = FAR * statistics.median(map(statistics.fmean, shown.values()))
    for row, values in enumerate(shown.values()):
        interval = Interval.of(values)
        if interval.mean > limit:
            edge = axis.get_yaxis_transform()
            axis.text(0.99, row, f"{interval.mean:.2f} →", transform=edge, ha="right", va="center")
            continue
        axis.plot(values, [row] * len(values), "o", color="#7a9cc6", markersize=4, alpha=0.8)
        axis.errorbar(interval.mean, row, xerr=interval.half, fmt="|", color="#1b2a41", capsize=3, markersize=12)
    axis.set_yticks(range(len(shown)), list(shown))
    label = f"{column.heading} (%)" if column.percent else column.heading
    axis.set_xlabel(textwrap.fill(label, width=30))
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", alpha=0.3)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()


def _lines(study: Study, name: str) -> list[Line]:
    """The results of `SETTING/LOSS`."""
    setting, _, loss = name.partition("/")
    lines = results(study, setting).get(loss) if setting in study.settings else None
    if lines is None:
        raise ConfigError(f"expected SETTING/LOSS of which there are results, such as split_numerals/gold, got {name}")
    return lines


def _names(study: Study, setting: str, loss: Loss) -> Iterator[str]:
    """Fingerprints of a loss's counted trials, where its rate has been searched."""
    try:
        rate = best_rates(study, [(setting, loss)])[setting, loss.name]
    except KeyError:
        return
    for seed in study.seeds:
        yield name_of(study, Trial(setting, loss, rate, seed))
