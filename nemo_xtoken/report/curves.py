"""The curves of one run or of several, over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemo_xtoken.report.chart import Chart, Series, line_chart
from nemo_xtoken.report.run_record import RunRecord

NUM_STYLES = 8
"""Colours of the style sheet; a ninth run takes the first again."""

AGREEMENT = "share of chunks whose likeliest token is the teacher's"
MASS = "probability of tokens outside the common set, mean over chunks"


def style_of(number: int) -> str:
    """The CSS class of the number-th run."""
    return f"s{number % NUM_STYLES}"


def charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Everything that one of the runs has logged, all runs on the same axes."""

    def of_each(key: str) -> list[Series]:
        return [Series(run.name, style_of(number), run.curve(key)) for number, run in enumerate(runs)]

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
