"""The curves of one run or of several, over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nemo_xtoken.report.chart import Chart, Series, line_chart
from nemo_xtoken.report.run_record import RunRecord

NUM_STYLES = 8
"""Colours of the style sheet; a ninth run takes the first again."""

AGREEMENT = "share of chunks whose likeliest token is the teacher's"
MASS = "probability of tokens outside the common set, mean over chunks"


NAMES = {
    "loss": "Loss",
    "ce": "Cross-entropy",
    "kd": "Distillation loss",
    "ratio": "Balance ratio",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens_per_second": "Speed",
    "memory_mib": "Memory",
    "top_1_agreement": "Agreement",
}
"""What is logged, as the charts call it."""


def name_of(key: str) -> str:
    """What a metric is called on a page, by its key in a run's metrics."""
    own, slash, teacher = key.removeprefix("validation_").partition("/")
    name = NAMES.get(own, own) + (", validation" if key.startswith("validation_") else "")
    return f"{name}, {teacher}" if slash else name


def write_lapses(lapses: Sequence[tuple[int, float]]) -> str:
    """Where values are not finite, in a few words: `NaN at step 5`; empty where all are."""
    if not lapses:
        return ""
    kind = "NaN" if all(math.isnan(value) for _, value in lapses) else "not finite"
    first, last = lapses[0][0], lapses[-1][0]
    return f"{kind} at step {first:,}" if first == last else f"{kind} at {len(lapses):,} steps, {first:,} to {last:,}"


def style_of(number: int) -> str:
    """The CSS class of the number-th run."""
    return f"s{number % NUM_STYLES}"


def charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Everything that one of the runs has logged, all runs on the same axes."""

    def of_each(key: str) -> list[Series]:
        return [
            Series(run.name, style_of(number), run.curve(key), write_lapses(run.lapses(key)))
            for number, run in enumerate(runs)
        ]

    own = [chart for teacher in teachers_of(runs) for chart in teacher_charts(runs, teacher, of_each)]
    drawn = (
        line_chart("Cross-entropy", "nats per token, on the training text", of_each("ce")),
        line_chart("Distillation loss", "nats per chunk", of_each("kd")),
        line_chart("Cross-entropy, validation", "nats per token", of_each("validation_ce")),
        line_chart("Distillation loss, validation", "nats per chunk", of_each("validation_kd")),
        *own,
        line_chart("Balance ratio", "what the distillation loss is multiplied by", of_each("ratio")),
        line_chart("Gradient norm", "before clipping", of_each("grad_norm")),
        line_chart("Learning rate", "of the step", of_each("lr")),
        line_chart("Speed", "student tokens per second", of_each("tokens_per_second")),
        line_chart("Memory", "MiB, the most that the first rank has held so far", of_each("memory_mib")),
    )
    return [chart for chart in drawn if chart is not None]


def teachers_of(runs: Sequence[RunRecord]) -> list[str]:
    """The names of several teachers, as the runs' metrics have them; one without a name where no run has several."""
    keys = [key for run in runs if run.metrics for key in run.metrics[-1] if key.startswith("kd/")]
    return list(dict.fromkeys(key.removeprefix("kd/") for key in keys)) or [""]


def teacher_charts(
    runs: Sequence[RunRecord], teacher: str, of_each: Callable[[str], list[Series]]
) -> list[Chart | None]:
    """The curves of one teacher; of several, each has its own loss as well."""
    title, key = (f", {teacher}", f"/{teacher}") if teacher else ("", "")
    return [
        line_chart(f"Distillation loss{title}", "nats per chunk", of_each(f"kd{key}")) if teacher else None,
        line_chart(f"Agreement{title}", AGREEMENT, of_each(f"top_1_agreement{key}")),
        line_chart(f"Uncommon tokens{title}", MASS, masses(runs, key)),
    ]


def masses(runs: Sequence[RunRecord], key: str) -> list[Series]:
    """The probability of uncommon tokens: the student's in each run; where only one has it, the teacher's as well."""
    having = [(number, run) for number, run in enumerate(runs) if run.curve(f"student_uncommon_mass{key}")]
    sides = ("student", "teacher") if len(having) == 1 else ("student",)
    return [
        Series(f"{run.name}: {side}", style_of(number + place), run.curve(f"{side}_uncommon_mass{key}"))
        for number, run in having
        for place, side in enumerate(sides)
    ]
