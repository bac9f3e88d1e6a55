"""Charts of a page as one PNG picture, for a paper or a slide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken.errors import DataError, UnavailableError
from nemo_xtoken.report.bars import BarChart
from nemo_xtoken.report.chart import Chart, running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1d1c1a", "#625f59", "#ebe9e4"
COLOURS = ("#0b63b8", "#a84a08", "#1a6b3c", "#8a2f8f", "#7a6000", "#0b7285", "#b3265a", "#5b5b66")
"""Those of the light style sheet, s0 to s7."""
LINES = ("-", "--", ":", "-.", (0, (5, 2)), (0, (1, 3)), (0, (12, 3)), (0, (6, 3, 1, 3)))
COLUMNS, WIDTH, HEIGHT, HEAD = 2, 5.2, 3.1, 0.6  # inches of a chart, and of the title above all
MOST_BARS, BAR = 12, 0.16  # in a chart of the usual size, and inches of one where there are more


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches. Raises UnavailableError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--png needs matplotlib, which is not installed; pip install 'nemo-xtoken[plots]', or leave it out"
        raise UnavailableError(message) from error
    return Figure(figsize=(width, height), facecolor="white")


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    figure.savefig(unfinished, format="png", dpi=200)
    unfinished.replace(path)
    return path


def write_charts(title: str, charts: Sequence[Chart | BarChart], path: Path) -> Path:
    """Write the charts under a title. Raises UnavailableError without matplotlib, DataError without a chart."""
    if not charts:
        raise DataError(f"{title} has nothing to draw yet, so there is no picture to write: leave --png out")
    return save_picture(draw_charts(title, charts), path)


def draw_charts(title: str, charts: Sequence[Chart | BarChart]) -> Figure:
    """The charts two by two; one of many bars has a row of its own."""
    places = _places(charts)
    height = HEAD + max(place.top + place.height for place in places)
    width = COLUMNS * WIDTH
    figure = new_figure(width, height)
    for chart, place in zip(charts, places, strict=True):
        top = HEAD + place.top
        inset = 2.0 if isinstance(chart, BarChart) else 0.65
        left, bottom = place.left + inset, height - top - place.height + 0.55
        box = (left / width, bottom / height, (place.width - inset - 0.25) / width, (place.height - 1.15) / height)
        _draw(figure.add_axes(box), chart)
        _write_title(figure, chart, place.left / width, 1 - top / height, height)
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=14, color=INK, fontweight="bold", va="center", parse_math=False)
    return figure


@dataclass(frozen=True)
class Place:
    """Where a chart lies, in inches from the left and from under the title."""

    left: float
    top: float
    width: float
    height: float


def _places(charts: Sequence[Chart | BarChart]) -> list[Place]:
    """Places from left to right and from above, each free of the others."""
    places: list[Place] = []
    left, top = 0.0, 0.0
    for chart in charts:
        bars = len(chart.rows) * len(chart.sides) if isinstance(chart, BarChart) else 0
        width, height = (COLUMNS * WIDTH, 1.2 + BAR * bars) if bars > MOST_BARS else (WIDTH, HEIGHT)
        if left and left + width > COLUMNS * WIDTH:
            left, top = 0.0, top + HEIGHT
        places.append(Place(left, top, width, height))
        left += width
        if left >= COLUMNS * WIDTH:
            left, top = 0.0, top + height
    return places


def _draw(axes: Axes, chart: Chart | BarChart) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    if isinstance(chart, BarChart):
        _draw_bars(axes, chart)
    else:
        _draw_lines(axes, chart)


def _draw_lines(axes: Axes, chart: Chart) -> None:
    for line in chart.series:
        number = int(line.style[1:])
        steps, means = zip(*running_mean(line.points), strict=True)
        axes.plot(*zip(*line.points, strict=True), color=COLOURS[number], linewidth=0.7, alpha=0.28)
        axes.plot(steps, means, color=COLOURS[number], linewidth=1.7, linestyle=LINES[number], label=line.name)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlabel("step", fontsize=8, color=QUIET)
    for text in axes.legend(fontsize=7, frameon=False, labelcolor=INK).get_texts():
        text.set_parse_math(False)


def _draw_bars(axes: Axes, chart: BarChart) -> None:
    count = len(chart.sides)
    thickness = 0.7 / count
    for place, (_, bars) in enumerate(chart.rows):
        for side, bar in enumerate(bars):
            middle = place + (side - (count - 1) / 2) * thickness
            axes.barh(middle, bar.length, height=0.85 * thickness, color=COLOURS[int(bar.style[1:])])
            axes.text(bar.length + 0.01, middle, bar.text, fontsize=7, color=QUIET, va="center")
    axes.set(xlim=(0, 1.15), ylim=(len(chart.rows) - 0.5, -0.5), xticks=[], yticks=range(len(chart.rows)))
    axes.set_yticklabels([textwrap.fill(label, 26) for label, _ in chart.rows], fontsize=7, color=INK)


def _write_title(figure: Figure, chart: Chart | BarChart, left: float, top: float, height: float) -> None:
    """Title and caption above a chart, and the sides of bars, which have no legend of their own."""
    sides = [] if isinstance(chart, Chart) or len(chart.sides) < 2 else chart.sides
    caption = chart.caption + (f" ({', '.join(name for name, _ in sides)}, from above)" if sides else "")
    for inches, text, size, colour, weight in (
        (0.14, chart.title, 10, INK, "bold"),
        (0.34, caption, 8, QUIET, "normal"),
    ):
        figure.text(
            left + 0.02, top - inches / height, text, fontsize=size, color=colour, fontweight=weight, va="center",
            parse_math=False,
        )  # fmt: skip
