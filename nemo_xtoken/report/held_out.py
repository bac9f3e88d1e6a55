"""The held-out numbers of a run, beside those of a control where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Measure:
    """One number of evaluation.json: what it is called, how it is written, and which way is better (0: neither)."""

    key: str
    name: str
    unit: str
    write: Callable[[float], str]
    better: int


MEASURES = (
    Measure("bits_per_byte", "Loss per byte", "bits per byte", _nats, -1),
    Measure("loss_multi_digit", "Loss on numerals of several digits", "nats per token", _nats, -1),
    Measure("loss_rest", "Loss on all other tokens", "nats per token", _nats, -1),
    Measure("probability_multi_digit", "Probability of the right numeral of several digits", "mean", _percent, 1),
    Measure("mass_multi_digit", "Probability of any numeral where one of several digits follows", "mean", _percent, 1),
    Measure("exact_answers", "Exact answers", "of the prompts", _percent, 1),
    Measure("questions", "Prompts", "", _count, 0),
    Measure("tokens", "Tokens", "", _count, 0),
    Measure("multi_digit_tokens", "Numerals of several digits among them", "", _count, 0),
    Measure("bytes", "Bytes", "", _count, 0),
)
HEADLINES = ("bits_per_byte", "loss_multi_digit", "exact_answers")


@dataclass(frozen=True)
class Comparison:
    """A measure of the run and, where there is one, of the control. `verdict` is better, worse, same or empty."""

    measure: Measure
    run: str
    control: str
    change: str
    verdict: str

    @property
    def is_headline(self) -> bool:
        """Whether it is shown large, above the table."""
        return self.measure.key in HEADLINES


def compare(run: Mapping[str, Any], control: Mapping[str, Any] | None) -> tuple[Comparison, ...]:
    """Every measure that the run has, in the order of MEASURES."""
    present = [measure for measure in MEASURES if run.get(measure.key) is not None]
    return tuple(compare_one(measure, float(run[measure.key]), (control or {}).get(measure.key)) for measure in present)


def compare_one(measure: Measure, run: float, control: float | None) -> Comparison:
    """One measure; the change is relative to the control, and in points where the measure is a rate."""
    if control is None:
        return Comparison(measure, measure.write(run), "", "", "")
    difference = run - control
    gain = difference * measure.better
    verdict = "" if not measure.better else "better" if gain > 0 else "worse" if gain < 0 else "same"
    return Comparison(
        measure, measure.write(run), measure.write(control), change(measure, difference, control), verdict
    )


def change(measure: Measure, difference: float, control: float) -> str:
    """A difference in words: percentage points of a rate, per cent of a loss; empty where neither way is better."""
    if not measure.better:
        return ""
    if measure.write is _percent:
        return signed(100 * difference, "points")
    return signed(100 * difference / control, "%") if control else ""


def signed(value: float, unit: str) -> str:
    """A number with its sign, with the minus sign of typography."""
    return f"{value:+.1f} {unit}".replace("-", "\N{MINUS SIGN}")
