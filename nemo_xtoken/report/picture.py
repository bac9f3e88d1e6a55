"""Charts of a page as one picture, for a paper or a slide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.errors import DataError, UnavailableError, require
from nemo_xtoken.report.bars import BarChart
from nemo_xtoken.report.chart import Chart
from nemo_xtoken.report.curves import is_repeated
from nemo_xtoken.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1d1c1a", "#625f59", "#ebe9e4"
COLOURS = ("#0b63b8", "#a84a08", "#1a6b3c", "#8a2f8f", "#7a6000", "#0b7285", "#b3265a", "#5b5b66")
"""Those of the light style sheet, s0 to s7."""
DASHES = ("-", "--", ":", "-.", (0, (5, 2)), (0, (1, 3)), (0, (12, 3)), (0, (6, 3, 1, 3)))
"""Those of the style sheet, d0 to d7."""
FORMATS = (".png", ".svg", ".pdf")
COLUMNS, WIDTH, HEIGHT, HEAD = 2, 5.2, 3.3, 0.6  # inches of a chart, and of the title above all
MOST_BARS, BAR = 12, 0.16  # in a chart of the usual size, and inches of one where there are more
LEGEND_ROW, MARK, LETTER, LONGEST = 0.22, 0.5, 0.085, 60  # inches of a legend's parts, characters of a name
CAPTION = 76  # characters of a line of it

Legend = Sequence[tuple[str, str]]


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches. Raises UnavailableError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--png needs matplotlib, which is not installed; pip install 'nemo-xtoken[plots]', or leave it out"
        raise UnavailableError(message) from error
    return Figure(figsize=(width, height), facecolor="white")


def check_format(path: Path) -> None:
    """Raises ConfigError for a picture of which the name does not say a format that can be written."""
    known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    require(path.suffix.lower() in FORMATS, f"expected the name of a picture, ending in {known}, got {path}")


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a picture in the format of its name, whole or not at all, and return its path. Raises ConfigError."""
    check_format(path)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=200)
    return path


def write_charts(title: str, charts: Sequence[Chart | BarChart], path: Path, legend: Legend = ()) -> Path:
    """Write the charts under a title. Raises UnavailableError without matplotlib, DataError without a chart."""
    if not charts:
        raise DataError(f"{title} has nothing to draw yet, so there is no picture to write: leave --png out")
    return save_picture(draw_charts(title, charts, legend), path)


def draw_charts(title: str, charts: Sequence[Chart | BarChart], legend: Legend = ()) -> Figure:
    """The charts two by two, under one legend of (name, style); a chart of many bars has a row of its own."""
    places = _places(charts)
    entries = legend if len(legend) > 1 else ()
    per_row = max(1, int((COLUMNS * WIDTH - 0.4) / _entry_width(entries)))
    head = HEAD + LEGEND_ROW * -(-len(entries) // per_row)
    height = head + max(place.top + place.height for place in places)
    width = COLUMNS * WIDTH
    figure = new_figure(width, height)
    for chart, place in zip(charts, places, strict=True):
        top = head + place.top
        inset = 2.0 if isinstance(chart, BarChart) else 0.65
        left, bottom = place.left + inset, height - top - place.height + 0.55
        box = (left / width, bottom / height, (place.width - inset - 0.25) / width, (place.height - 1.35) / height)
        _draw(figure.add_axes(box), chart, [name for name, _ in legend])
        _write_title(figure, chart, place.left / width, 1 - top / height, height)
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=14, color=INK, fontweight="bold", va="center", parse_math=False)
    bars_alone = all(isinstance(chart, BarChart) for chart in charts)
    for place, (name, style) in enumerate(entries):
        x, y = 0.2 + place % per_row * _entry_width(entries), 0.6 + place // per_row * LEGEND_ROW
        _write_entry(figure, x / width, 1 - y / height, name, style, bars_alone)
    return figure


def _entry_width(legend: Legend) -> float:
    return MARK + LETTER * min(max((len(name) for name, _ in legend), default=0), LONGEST) + 0.25


def _write_entry(figure: Figure, x: float, y: float, name: str, style: str, is_bar: bool) -> None:
    """A name of the legend behind its line, or its block where there are bars alone."""
    from matplotlib.lines import Line2D

    colour, dash = _drawn(style)
    width, end = (7.0, x + 0.012) if is_bar else (1.7, x + 0.036)
    figure.add_artist(
        Line2D(
            (x, end), (y, y), color=colour, linewidth=width, linestyle="-" if is_bar else dash, solid_capstyle="butt"
        )
    )
    text = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    figure.text(end + 0.008, y, text, fontsize=9, color=INK, va="center", parse_math=False)


def _drawn(style: str) -> tuple[str, Any]:
    """The colour and the dash of a style's CSS classes."""
    colour, dash = style.split()
    return COLOURS[int(colour[1:])], DASHES[int(dash[1:])]


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


def _draw(axes: Axes, chart: Chart | BarChart, known: Sequence[str]) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    if isinstance(chart, BarChart):
        _draw_bars(axes, chart)
    else:
        _draw_lines(axes, chart, known)


def _draw_lines(axes: Axes, chart: Chart, known: Sequence[str]) -> None:
    """Lines with the page's own marks; a legend where their names are not those of the picture's."""
    for line in chart.lines:
        colour, dash = _drawn(line.style)
        if line.is_noisy:
            axes.plot(*zip(*line.points, strict=True), color=colour, linewidth=0.7, alpha=0.28)
        marker = "o" if len(line.means) == 1 else ""
        axes.plot(
            *zip(*line.means, strict=True), color=colour, linewidth=1.7, linestyle=dash, marker=marker, label=line.name
        )
    x_axis, y_axis = chart.x_axis, chart.y_axis
    edge = 0.02 * (y_axis.high - y_axis.low)
    axes.set(xlim=(x_axis.low, x_axis.high), ylim=(y_axis.low - edge, y_axis.high + edge))
    axes.set_xticks([tick.value for tick in chart.x_ticks], [tick.label for tick in chart.x_ticks])
    axes.set_yticks([tick.value for tick in chart.y_ticks], [tick.label for tick in chart.y_ticks])
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlabel("step", fontsize=8, color=QUIET)
    if any(line.name not in known for line in chart.lines):
        legend = axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, frameon=False, labelcolor=INK, borderaxespad=0
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _draw_bars(axes: Axes, chart: BarChart) -> None:
    count = len(chart.sides)
    thickness = 0.7 / count
    for place, (_, bars) in enumerate(chart.rows):
        for side, bar in enumerate(bars):
            middle = place + (side - (count - 1) / 2) * thickness
            hatch = "////" if is_repeated(bar.style) else None
            colour = _drawn(bar.style)[0]
            axes.barh(middle, bar.length, height=0.85 * thickness, color=colour, hatch=hatch, edgecolor="white", lw=0)
            axes.text(bar.length + 0.01, middle, bar.text, fontsize=7, color=QUIET, va="center")
    axes.set(xlim=(0, 1.15), ylim=(len(chart.rows) - 0.5, -0.5), xticks=[], yticks=range(len(chart.rows)))
    axes.set_yticklabels([textwrap.fill(label, 26) for label, _ in chart.rows], fontsize=7, color=INK)


def _write_title(figure: Figure, chart: Chart | BarChart, left: float, top: float, height: float) -> None:
    """Title, caption and what is cut off, above a chart."""
    cut = [chart.cut] if isinstance(chart, Chart) and chart.cut else []
    caption = "\n".join(textwrap.fill(line, CAPTION) for line in [chart.caption, *cut])
    for inches, text, size, colour, weight in (
        (0.06, chart.title, 10, INK, "bold"),
        (0.25, caption, 8, QUIET, "normal"),
    ):
        figure.text(
            left + 0.02, top - inches / height, text, fontsize=size, color=colour, fontweight=weight, va="top",
            linespacing=1.15, parse_math=False,
        )  # fmt: skip
