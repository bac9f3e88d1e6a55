"""The held-out loss of one run or of several by class of tokens, as bars."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_xtoken.projection import TokenClass
from nemo_xtoken.report.bars import BarChart, bar_chart
from nemo_xtoken.report.curves import legend
from nemo_xtoken.report.html import capital
from nemo_xtoken.report.run_record import RunRecord


def class_bars(runs: Sequence[RunRecord]) -> list[BarChart]:
    """A row for each class that occurs in the held-out text of a run; none where no run was evaluated by class."""
    evaluations = [run.evaluation or {} for run in runs]
    rows: list[tuple[str, list[float | None]]] = []
    for name in TokenClass:
        values = [evaluation.get(f"loss/{name.value}") for evaluation in evaluations]
        if any(value is not None for value in values):
            count = max(evaluation.get(f"tokens/{name.value}") or 0 for evaluation in evaluations)
            rows.append((f"{capital(name.label)} ({count:,.0f})", values))
    if not rows:
        return []
    sides = legend(runs)
    caption = "nats per token, beside each class the number of its tokens in the text"
    return [bar_chart("Held-out loss by class of tokens", caption, sides, rows, lambda value: f"{value:.3f}")]
