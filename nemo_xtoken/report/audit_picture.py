"""The coverage audit as one PNG picture, for a paper or a slide."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken.projection import CRITICAL_CLASSES, Audit, ClassCoverage
from nemo_xtoken.report.picture import GRID, INK, QUIET, new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMMON, _ALARM = "#0b63b8", "#c4571a"  # apart for the colour-blind, and in grey
_WIDTH, _ROW, _HEAD, _FOOT = 9.0, 0.3, 1.15, 0.85  # inches
_LEFT, _RIGHT = 2.65, 2.35  # of the bars
_LINE = 104  # characters of small text
_SPEC = 46


def write_picture(audit: Audit, path: Path) -> Path:
    """Write the picture, whole or not at all, and return its path.

    Raises UnavailableError where matplotlib is not installed.
    """
    return save_picture(draw(audit), path)


def draw(audit: Audit) -> Figure:
    """A bar per class of student tokens: the part with an exact teacher token, and the rest, which stands out where
    the class is critical. Raises UnavailableError where matplotlib is not installed."""
    bars = rows(audit)
    height = _HEAD + _ROW * len(bars) + _FOOT
    figure = new_figure(_WIDTH, height)
    width = (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    axes = figure.add_axes((_LEFT / _WIDTH, _FOOT / height, width, _ROW * len(bars) / height))
    for place, bar in enumerate(bars):
        _draw_row(axes, place, *bar)
    _frame(axes, len(bars))
    _write_around(figure, audit, height)
    return figure


def rows(audit: Audit) -> list[tuple[str, ClassCoverage, bool]]:
    """Label, coverage and whether the class is critical, in the order of the audit; the user's own classes last."""
    own = [(name.label, coverage, name in CRITICAL_CLASSES) for name, coverage in audit.classes.items()]
    return [*own, *((f"{name} (asked for)", coverage, False) for name, coverage in audit.user_classes.items())]


def _draw_row(axes: Axes, place: int, label: str, coverage: ClassCoverage, critical: bool) -> None:
    alarming = critical and coverage.uncommon > 0
    colour, weight = (_ALARM, "bold") if alarming else (INK, "normal")
    axes.barh(place, 1.0, height=0.55, color=_ALARM if alarming else GRID, alpha=0.35 if alarming else 1.0)
    axes.barh(place, coverage.share, height=0.55, color=_COMMON)
    short = textwrap.shorten(label, 28, placeholder="…")
    counts = (f"{100 * coverage.share:.1f} %", f"{coverage.common:,} of {coverage.total:,}")
    bar = _WIDTH - _LEFT - _RIGHT
    for inches, text in zip((-0.1, bar + 0.7, bar + 2.15), (short, *counts), strict=True):
        axes.text(
            inches / bar, place, text, ha="right", va="center", fontsize=9, color=colour, fontweight=weight,
            parse_math=False,
        )  # fmt: skip


def _frame(axes: Axes, num_rows: int) -> None:
    """Gridlines at the quarters, over the bars' own background, and nothing else."""
    axes.set(xlim=(0, 1), ylim=(num_rows - 0.5, -0.5), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0", "25 %", "50 %", "75 %", "100 %"], fontsize=8, color=QUIET)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color="white", linewidth=0.8)


def _write_around(figure: Figure, audit: Audit, height: float) -> None:
    """The heading above the bars, the recommended loss under them."""
    pair = f"student {_tail(audit.student_spec)} · teacher {_tail(audit.teacher_spec)}"
    counts = (
        f"{audit.num_exact:,} exact · {audit.num_projected:,} projected · {audit.num_empty:,} empty rows · "
        f"{audit.num_unreached:,} teacher tokens that no row reaches"
    )
    lines = (
        (height - 0.3, "Student tokens with an exact teacher token", 13.0, INK),
        (height - 0.6, pair, 8.5, QUIET),
        (height - 0.82, counts, 8.5, QUIET),
        (0.3, textwrap.fill(audit.reason, _LINE, break_on_hyphens=False), 9.0, INK),
    )
    for inches, text, size, colour in lines:
        weight = "bold" if size > 12 else "normal"
        figure.text(
            0.25 / _WIDTH, inches / height, text, fontsize=size, color=colour, fontweight=weight, va="center",
            parse_math=False,
        )  # fmt: skip


def _tail(spec: str) -> str:
    """A spec, or the end of one that is too long, which tells more than its beginning."""
    return spec if len(spec) <= _SPEC else f"…{spec[1 - _SPEC :]}"
