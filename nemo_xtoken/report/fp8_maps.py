"""What FP8 does to a run's numbers, as maps: a row per layer, steps from left to right, a stronger colour for more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.report.chart import three_digits
from nemo_xtoken.report.run_record import Record, read_metrics

FILE = "fp8.jsonl"
COLUMNS = 48
TENSORS = {"input": "Input", "weight": "Weight", "gradient": "Gradient"}
QUANTITIES = {
    "amax": "largest absolute value",
    "scale": "scale, that of the block with the largest values",
    "underflow": "share that became zero",
    "overflow": "share cut to the largest number",
}


@dataclass(frozen=True)
class Cell:
    """A layer over some steps: its value as text, and how strong its colour is, 0 to 1."""

    text: str
    shade: float


@dataclass(frozen=True)
class Map:
    """One number of one tensor, by layer and time; low and high are what the weakest and the strongest colour mean.

    steps    the first and the last
    is_zero  whether there is nothing to see
    """

    title: str
    caption: str
    low: str
    high: str
    steps: tuple[int, int]
    is_zero: bool
    rows: Sequence[tuple[str, Sequence[Cell]]]


def read_maps(run_dir: Path) -> list[Map]:
    """The maps of a run's FP8 record; none where it has none. Raises DataError where the record is damaged."""
    records = read_metrics(run_dir / FILE)
    if not records:
        return []
    parts = split(records, COLUMNS)
    return [
        draw(f"{name}, {quantity}", caption, tensor, quantity, parts)
        for tensor, name in TENSORS.items()
        for quantity, caption in QUANTITIES.items()
    ]


def split(records: Sequence[Record], columns: int) -> list[Sequence[Record]]:
    """Consecutive records in at most this many parts of nearly equal length."""
    count = min(columns, len(records))
    edges = [round(i * len(records) / count) for i in range(count + 1)]
    return [records[first:last] for first, last in itertools.pairwise(edges)]


def draw(title: str, caption: str, tensor: str, quantity: str, parts: Sequence[Sequence[Record]]) -> Map:
    """One map; a cell has the largest value of its steps, of scales the smallest."""
    worst = min if quantity == "scale" else max
    layers = list(parts[-1][-1]["layers"])
    values = [
        [worst(_value(record["layers"], layer, tensor, quantity) for record in part) for part in parts]
        for layer in layers
    ]
    as_logarithm = quantity in ("amax", "scale")
    known = [value for row in values for value in row if value > 0 or not as_logarithm]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    rows = [
        (layer, [Cell(_text(value, quantity), _shade(value, low, high, as_logarithm)) for value in row])
        for layer, row in zip(layers, values, strict=True)
    ]
    steps = int(parts[0][0]["step"]), int(parts[-1][-1]["step"])
    return Map(title, caption, _text(low, quantity), _text(high, quantity), steps, high == 0, rows)


def _value(layers: Mapping[str, Any], layer: str, tensor: str, quantity: str) -> float:
    return float(layers.get(layer, {}).get(tensor, {}).get(quantity, 0.0))


def _shade(value: float, low: float, high: float, as_logarithm: bool) -> float:
    if as_logarithm:
        if value <= 0:
            return 0.0
        value, low, high = math.log(value), math.log(low), math.log(high)
    return 0.0 if high <= low else (value - low) / (high - low)


def _text(value: float, quantity: str) -> str:
    return f"{100 * value:.2f} %" if quantity in ("underflow", "overflow") else three_digits(value)
