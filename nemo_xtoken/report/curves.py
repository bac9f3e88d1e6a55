"""The curves of one run or of several, over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from nemo_xtoken.config import TeacherConfig
from nemo_xtoken.loss_config import LossConfig
from nemo_xtoken.report.chart import Chart, Series, line_chart
from nemo_xtoken.report.run_record import RunRecord, names

NUM_STYLES = 8
"""Colours of the style sheet, and its dashes; a ninth run takes the first colour again, with another dash."""

ONLY_SAME = "; comparable only between runs of the same loss"

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
    """The CSS classes of the number-th run: its colour and its dash, which together come again after 64 runs."""
    return f"s{number % NUM_STYLES} d{(number + number // NUM_STYLES) % NUM_STYLES}"


def is_repeated(style: str) -> bool:
    """Whether a style has the colour of an earlier run, so that bars, which have no dash, need another sign."""
    colour, dash = style.split()
    return colour[1:] != dash[1:]


def legend(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """(name, style) of each run, the same on every chart."""
    return [(name, style_of(number)) for number, name in enumerate(names(runs))]


def charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Everything that one of the runs has logged, all runs on the same axes."""

    def of_each(key: str) -> list[Series]:
        return [
            Series(name, style, run.curve(key), write_lapses(run.lapses(key)))
            for run, (name, style) in zip(runs, legend(runs), strict=True)
        ]

    same = ONLY_SAME if losses_differ(runs) else ""
    own = [chart for teacher in teachers_of(runs) for chart in teacher_charts(runs, teacher, of_each, same)]
    drawn = (
        line_chart("Cross-entropy", "nats per token, on the training text", of_each("ce")),
        line_chart("Distillation loss", f"nats per chunk{same}", of_each("kd")),
        line_chart("Cross-entropy, validation", "nats per token", of_each("validation_ce")),
        line_chart("Distillation loss, validation", f"nats per chunk{same}", of_each("validation_kd")),
        *own,
        line_chart("Balance ratio", f"what the distillation loss is multiplied by{same}", of_each("ratio")),
        line_chart("Gradient norm", "before clipping", of_each("grad_norm")),
        line_chart("Learning rate", "of the step", of_each("lr")),
        line_chart("Speed", "student tokens per second", of_each("tokens_per_second")),
        line_chart("Memory", "MiB, the most that the first rank has held so far", of_each("memory_mib")),
    )
    return [chart for chart in drawn if chart is not None]


def losses_differ(runs: Sequence[RunRecord]) -> bool:
    """Whether teachers of the runs have losses of which the values can't be compared."""
    configs = [run.config for run in runs]
    losses = [[loss_of(teacher) for teacher in config.teachers] for config in configs if config and config.teachers]
    return any(loss != losses[0] for loss in losses)


def loss_of(teacher: TeacherConfig) -> LossConfig:
    """A teacher's loss without what its value does not depend on."""
    return replace(teacher.loss, block_memory_mib=1.0, block_rows=None, implementation="auto")


def teachers_of(runs: Sequence[RunRecord]) -> list[str]:
    """The names of several teachers, as the runs' metrics have them; one without a name where no run has several."""
    keys = [key for run in runs if run.metrics for key in run.metrics[-1] if key.startswith("kd/")]
    return list(dict.fromkeys(key.removeprefix("kd/") for key in keys)) or [""]


def teacher_charts(
    runs: Sequence[RunRecord], teacher: str, of_each: Callable[[str], list[Series]], same: str
) -> list[Chart | None]:
    """The curves of one teacher; of several, each has its own loss as well, whose caption ends with `same`."""
    title, key = (f", {teacher}", f"/{teacher}") if teacher else ("", "")
    return [
        line_chart(f"Distillation loss{title}", f"nats per chunk{same}", of_each(f"kd{key}")) if teacher else None,
        line_chart(f"Agreement{title}", AGREEMENT, of_each(f"top_1_agreement{key}")),
        line_chart(f"Uncommon tokens{title}", MASS, masses(runs, key)),
    ]


def masses(runs: Sequence[RunRecord], key: str) -> list[Series]:
    """The probability of uncommon tokens: the student's in each run; where only one has it, the teacher's as well."""
    having = [
        (number, run, name)
        for number, (run, name) in enumerate(zip(runs, names(runs), strict=True))
        if run.curve(f"student_uncommon_mass{key}")
    ]
    if len(having) != 1:
        return [Series(name, style_of(n), run.curve(f"student_uncommon_mass{key}")) for n, run, name in having]
    ((number, run, name),) = having
    colour, dash = style_of(number).split()
    teacher = f"{colour} d{(int(dash[1:]) + 2) % NUM_STYLES}"
    return [
        Series(f"{name}: {side}", style, run.curve(f"{side}_uncommon_mass{key}"))
        for side, style in (("student", f"{colour} {dash}"), ("teacher", teacher))
    ]
