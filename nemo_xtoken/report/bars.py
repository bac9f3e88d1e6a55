"""Bars for counts of several sides: a row per kind, a bar per side, as long as its share of the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One side's value in a row: as text, and how long its bar is, 0 to 1."""

    style: str
    text: str
    length: float


@dataclass(frozen=True)
class BarChart:
    """A titled chart: a label and the bars of all sides in each row."""

    title: str
    caption: str
    sides: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Bar, ...]], ...]


def bar_chart(
    title: str,
    caption: str,
    sides: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    write: Callable[[float], str],
) -> BarChart:
    """Lay rows of values out, a value for each (name, style) of the sides; the largest of all has the whole width.

    A value that is not there has no bar.
    """
    most = max((value for _, values in rows for value in values if value is not None), default=0.0) or 1.0

    def bar(style: str, value: float | None) -> Bar:
        return Bar(style, "–", 0.0) if value is None else Bar(style, write(value), value / most)

    return BarChart(
        title,
        caption,
        tuple(sides),
        tuple(
            (label, tuple(bar(style, value) for (_, style), value in zip(sides, values, strict=True)))
            for label, values in rows
        ),
    )
