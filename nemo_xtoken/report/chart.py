"""A line chart's geometry in SVG units; the page's template draws it, so that it follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 248
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 10, 50

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Values by step, with the name and the CSS class they are drawn with; `lapses` tells where one was not finite."""

    name: str
    style: str
    points: Points
    lapses: str = ""


@dataclass(frozen=True)
class Line:
    """One series: the logged values, faint, and their running mean. Paths are SVG path data; `last` is its end."""

    name: str
    style: str
    path: str
    mean_path: str
    last: str
    lapses: str = ""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in SVG units and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A titled chart over steps."""

    title: str
    caption: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
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
    x_axis = Axis.around([x for one in drawn for x, _ in one.points], LEFT, WIDTH - RIGHT)
    y_axis = Axis.around([y for one in drawn for _, y in one.points], HEIGHT - BOTTOM, TOP)
    return Chart(
        title,
        caption,
        lines=tuple(draw(one, x_axis, y_axis) for one in drawn),
        x_ticks=x_axis.ticks(5),
        y_ticks=y_axis.ticks(4),
        series=tuple(drawn),
    )


@dataclass(frozen=True)
class Axis:
    """A linear map from values to SVG units."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """An axis just long enough for the values; a lone value sits in its middle, far from either end."""
        low, high = min(values), max(values)
        if low == high:
            reach = abs(low) / 2 or 0.5
            low, high = low - reach, high + reach
        return cls(low, high, start, end)

    def place(self, value: float) -> float:
        """Where a value lies, in SVG units."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> tuple[Tick, ...]:
        """About `count` marks at round values inside the axis."""
        step = round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return tuple(Tick(self.place(k * step), short(k * step)) for k in range(first, last + 1))


def short(value: float) -> str:
    """A round value as an axis has room for it: 250k, 1.2M."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(scale, 1e4):
            return f"{value / scale:.6g}{unit}"
    return f"{value:,.6g}"


def round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, whichever is the nearest to `step` by ratio."""
    scale = 10.0 ** math.floor(math.log10(step))
    return min((factor * scale for factor in (1, 2, 5, 10)), key=lambda rounded: abs(math.log(rounded / step)))


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Each value averaged with its neighbours: a centred window of 1/25 of the curve, shorter at the ends."""
    reach = len(points) // 50
    means: list[tuple[float, float]] = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        window = [y for _, y in points[i - near : i + near + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def draw(series: Series, x_axis: Axis, y_axis: Axis) -> Line:
    """A series as SVG paths."""
    tail = [y for _, y in series.points[-max(1, len(series.points) // 25) :]]
    return Line(
        name=series.name,
        style=series.style,
        path=svg_path(series.points, x_axis, y_axis),
        mean_path=svg_path(running_mean(series.points), x_axis, y_axis),
        last=three_digits(sum(tail) / len(tail)),
        lapses=series.lapses,
    )


def three_digits(value: float) -> str:
    """A value with three digits that count, and without an exponent where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def svg_path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    """Straight lines from point to point."""
    return "M" + "L".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in points)
