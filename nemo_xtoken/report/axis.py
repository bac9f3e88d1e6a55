"""An axis of a chart: where values lie in SVG units, and its marks at round values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROOM = 6
"""Characters of a label that fit beside a chart on a phone."""

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its value, its place in SVG units and its label."""

    value: float
    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear map from values to SVG units."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, low: float, high: float, start: float, end: float) -> Axis:
        """An axis just long enough for the values; a lone value sits in its middle, far from either end."""
        if low == high:
            reach = abs(low) / 2 or 0.5
            low, high = low - reach, high + reach
        return cls(low, high, start, end)

    def place(self, value: float) -> float:
        """Where a value lies, in SVG units; one beyond an end lies on it."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int, *, whole: bool = False) -> tuple[Tick, ...]:
        """About `count` marks at round values inside the axis, `whole` ones where only those have a meaning."""
        step = round_step((self.high - self.low) / count)
        if whole:
            step = max(step, 1.0)
        values = [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        places = map(self.place, values)
        return tuple(map(Tick, values, places, labels(values, step)))


def round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, whichever is the nearest to `step` by ratio."""
    scale = 10.0 ** math.floor(math.log10(step))
    return min((factor * scale for factor in (1, 2, 5, 10)), key=lambda rounded: abs(math.log(rounded / step)))


def labels(values: Sequence[float], step: float) -> list[str]:
    """Round values in as few characters as tell them apart, all of them in one unit and with as many decimals."""
    most = max(map(abs, values), default=0.0)
    scale, unit = next(((scale, unit) for scale, unit in UNITS if most >= max(scale, 1e4)), (1.0, ""))
    plain = [_write(value / scale, step / scale, unit) for value in values]
    if most == 0 or max(map(len, plain)) <= ROOM:
        return plain
    exponent = math.floor(math.log10(most))
    short = [_write(value / 10.0**exponent, step / 10.0**exponent, f"e{exponent}") for value in values]
    return short if max(map(len, short)) < max(map(len, plain)) else plain


def _write(value: float, step: float, unit: str) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:,.{decimals}f}{unit}"
    return "0" if value == 0 else text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text
