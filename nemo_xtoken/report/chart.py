"""A line chart's geometry in SVG units; the page's template draws it, so that it follows the page's colours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.report.axis import Axis, Tick

WIDTH, HEIGHT = 460, 248
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 10, 50

MOST_POINTS = 1000
"""Points of a line that are drawn; a screen has no room for more."""

FEWEST_TO_CUT, BEYOND = 20, 3.0
"""Values that a chart needs, and how many times as tall as the rest the outliers have to be, for them to be cut off."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Values by step, with the name and the CSS classes they are drawn with; `lapses` tells where one was not
    finite."""

    name: str
    style: str
    points: Points
    lapses: str = ""


@dataclass(frozen=True)
class Line:
    """One series: the logged values, faint, and their running mean, as points and as SVG path data; `last` is its end.

    is_noisy  whether the logged values differ from their mean, so that they are drawn too
    """

    name: str
    style: str
    points: Points
    means: Points
    path: str
    mean_path: str
    is_noisy: bool
    last: str
    lapses: str


@dataclass(frozen=True)
class Chart:
    """A titled chart over steps; `cut` tells what lies beyond its edges."""

    title: str
    caption: str
    lines: tuple[Line, ...]
    x_axis: Axis
    y_axis: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    cut: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM

    @property
    def description(self) -> str:
        """The chart in words, for those who can't see it."""
        ends = ", ".join(f"{line.name} ends at {line.last}" for line in self.lines)
        return f"{self.title} over steps: {ends}"


def line_chart(title: str, caption: str, series: Sequence[Series]) -> Chart | None:
    """Lay the series out on common axes; None where none of them has a point."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    steps = [x for one in drawn for x in (one.points[0][0], one.points[-1][0])]
    values = np.array([y for one in drawn for _, y in one.points])
    low, high = bounds(values)
    x_axis = Axis.around(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y_axis = Axis.around(low, high, HEIGHT - BOTTOM, TOP)
    return Chart(
        title,
        caption,
        lines=tuple(draw(one, x_axis, y_axis) for one in drawn),
        x_axis=x_axis,
        y_axis=y_axis,
        x_ticks=x_axis.ticks(5, whole=True),
        y_ticks=y_axis.ticks(4),
        cut=what_is_cut(values, low, high),
    )


def bounds(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest value, but without the 1 % at an end that would flatten all others."""
    ordered = np.sort(values)
    low, high = float(ordered[0]), float(ordered[-1])
    if len(ordered) < FEWEST_TO_CUT:
        return low, high
    few = max(1, len(ordered) // 100)
    inner_low, inner_high = float(ordered[few]), float(ordered[-1 - few])
    reach = inner_high - inner_low
    if reach <= 0:
        return low, high
    return (
        inner_low - 0.1 * reach if inner_low - low > BEYOND * reach else low,
        inner_high + 0.1 * reach if high - inner_high > BEYOND * reach else high,
    )


def what_is_cut(values: np.ndarray, low: float, high: float) -> str:
    """How many values lie beyond the bounds of a chart, and how far; empty where none does."""
    above, below = int((values > high).sum()), int((values < low).sum())
    told = [f"{above:,} above the chart, up to {three_digits(float(values.max()))}"] if above else []
    told += [f"{below:,} below it, down to {three_digits(float(values.min()))}"] if below else []
    return f"Cut off: {', '.join(told)}" if told else ""


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Each value averaged with its neighbours: a centred window of 1/25 of the curve, shorter at the ends.

    Of more than `MOST_POINTS` values as many means, evenly spaced.
    """
    reach = len(points) // 50
    values = np.array([y for _, y in points])
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).astype(np.int64))
    means: list[tuple[float, float]] = []
    for i in kept.tolist():
        near = min(reach, i, len(points) - 1 - i)
        means.append((points[i][0], float(values[i - near : i + near + 1].mean())))
    return means


def thin(points: Points) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of the points, in order: the lowest and the highest of equal parts of the curve."""
    if len(points) <= MOST_POINTS:
        return list(points)
    values = np.array([y for _, y in points])
    edges = np.linspace(0, len(points), MOST_POINTS // 2 + 1).astype(np.int64)
    parts = [(first, values[first:last]) for first, last in itertools.pairwise(edges.tolist())]
    kept = sorted({first + int(pick(part)) for first, part in parts for pick in (np.argmin, np.argmax)})
    return [points[i] for i in kept]


def draw(series: Series, x_axis: Axis, y_axis: Axis) -> Line:
    """A series as SVG paths."""
    tail = [y for _, y in series.points[-max(1, len(series.points) // 25) :]]
    points, means = thin(series.points), running_mean(series.points)
    return Line(
        name=series.name,
        style=series.style,
        points=points,
        means=means,
        path=svg_path(points, x_axis, y_axis),
        mean_path=svg_path(means, x_axis, y_axis),
        is_noisy=len(series.points) >= 50,
        last=three_digits(sum(tail) / len(tail)),
        lapses=series.lapses,
    )


def three_digits(value: float) -> str:
    """A value with three digits that count, and without an exponent where it is large."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def svg_path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    """Straight lines from point to point; a lone point is a dot, which a round cap of the line makes visible."""
    path = "M" + "L".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in points)
    return f"{path}h0" if len(points) == 1 else path
