"""One self-contained HTML page about a run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nemo_xtoken import tokenizers
from nemo_xtoken.config import TeacherConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.projection import Audit, ProjectionMatrix, audit, newest_automatic
from nemo_xtoken.report.aligned_tokens import AlignedSentence, align_sentence
from nemo_xtoken.report.chart import Chart, Series, line_chart
from nemo_xtoken.report.corner import Corner, corner
from nemo_xtoken.report.fp8_maps import read_maps
from nemo_xtoken.report.held_out import Comparison, compare
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.run_record import CONFIG_FILE, RunRecord, read_run

DEFAULT_SENTENCE = "In 2024 the bakery sold 1288 loaves at €3.75 each, 201 more than the year before."
PACKAGES = ("nemo-xtoken", "torch", "megatron-core", "numpy", "tokenizers", "transformer-engine", "apex")


@dataclass(frozen=True)
class Pair:
    """How two tokenizers meet: the coverage of the student's token classes, a sentence, and a corner of W."""

    student_spec: str
    teacher_spec: str
    audit: Audit
    sentence: AlignedSentence
    corner: Corner


def write_report(
    run_dir: Path,
    *,
    control: Path | None = None,
    projection: Path | None = None,
    sentence: str | None = None,
    out: Path | None = None,
) -> Path:
    """Write the report of a run as one HTML file and return its path.

    run_dir     a run's directory
    control     the run to compare with
    projection  the file of W; by default those of the run's teachers
    sentence    the text whose alignment is shown; by default one with numbers in it
    out         the page's path; by default `report.html` in the run's directory
    A part that there is nothing for is left out, and the page says so. Raises DataError where a run directory is
    missing or damaged, ProjectionError or TokenizerError where a projection that was asked for can't be read.
    """
    run = read_run(run_dir)
    baseline = read_run(control) if control else None
    pairs, reason = read_pairs(run, projection, sentence or DEFAULT_SENTENCE)
    page = render(run, baseline, pairs, reason)
    return write_page(out or run_dir / "report.html", page)


def render(run: RunRecord, control: RunRecord | None, pairs: Sequence[Pair], reason: str) -> str:
    """The page's HTML; every text that is not the template's own is escaped."""
    return template("page.html.j2", weight=write_weight).render(
        run=run,
        control=control,
        comparisons=compare_runs(run, control),
        charts=charts(run, control),
        fp8_maps=read_maps(run.path),
        totals=totals(run),
        pairs=pairs,
        reason=reason,
        versions=versions(),
    )


def write_weight(weight: float) -> str:
    """An entry of W in few digits, without rounding one that is below 1 up to it."""
    if weight >= 1:
        return "1"
    return f"{weight:.2f}" if weight >= 0.01 else f"{weight:.3f}" if weight >= 0.001 else "<.001"


def read_pairs(run: RunRecord, projection: Path | None, sentence: str) -> tuple[list[Pair], str]:
    """The pairs of tokenizers behind the projections of a run, or none and the reason in a sentence."""
    if projection is not None:
        return [load_pair(projection, sentence)], ""
    try:
        config = load_run(run.path / CONFIG_FILE, ()) if run.config_text else None
        if config is None or not config.teachers:
            return [], "This run has no teacher, so there is no pair of tokenizers to show."
        paths = projection_files(run.path, config.teachers)
        if not paths:
            return [], "This run has not built its projection yet, so there is no pair of tokenizers to show."
        return [load_pair(path, sentence) for path in paths], ""
    except XTokenError as error:
        return [], f"The pair of tokenizers could not be read: {error}"


def projection_files(run_dir: Path, teachers: Sequence[TeacherConfig]) -> list[Path]:
    """The files of W of a run's teachers, each once: those that the config names, then those that the run has built."""
    named = [Path(teacher.projection) for teacher in teachers if teacher.projection is not None]
    built = newest_automatic(run_dir, len(teachers) - len(named))
    return list(dict.fromkeys([*named, *built]))


def load_pair(projection: Path, sentence: str) -> Pair:
    """Read W and both its tokenizers."""
    matrix = ProjectionMatrix.load(projection)
    student, teacher = tokenizers.load(matrix.student_spec), tokenizers.load(matrix.teacher_spec)
    matrix.check_pair(student.fingerprint, teacher.fingerprint)
    return Pair(
        student_spec=matrix.student_spec,
        teacher_spec=matrix.teacher_spec,
        audit=audit(matrix, student, teacher),
        sentence=align_sentence(sentence, student, teacher),
        corner=corner(matrix, student, teacher, sentence),
    )


def compare_runs(run: RunRecord, control: RunRecord | None) -> tuple[Comparison, ...]:
    """Held-out numbers of the run, beside the control's where it was evaluated too."""
    if run.evaluation is None:
        return ()
    return compare(run.evaluation, control.evaluation if control else None)


def charts(run: RunRecord, control: RunRecord | None) -> list[Chart]:
    """Curves over steps: those that were logged."""

    def both(key: str) -> list[Series]:
        mine = Series(run.name, "run", run.curve(key))
        return [mine] if control is None else [mine, Series(control.name, "control", control.curve(key))]

    drawn = (
        line_chart("Cross-entropy", "nats per token, on the training text", both("ce")),
        line_chart("Distillation loss", "nats per chunk", both("kd")),
        *(chart for teacher in teachers_of(run) for chart in teacher_charts(run, teacher, both)),
        line_chart("Balance ratio", "what the distillation loss is multiplied by", both("ratio")),
        line_chart("Gradient norm", "before clipping", both("grad_norm")),
        line_chart("Speed", "student tokens per second", both("tokens_per_second")),
    )
    return [chart for chart in drawn if chart is not None]


def teachers_of(run: RunRecord) -> list[str]:
    """The names of several teachers, as the run's metrics have them; one without a name where there is one or none."""
    keys = run.metrics[-1] if run.metrics else ()
    return [key.removeprefix("kd/") for key in keys if key.startswith("kd/")] or [""]


def teacher_charts(run: RunRecord, teacher: str, both: Callable[[str], list[Series]]) -> list[Chart | None]:
    """The curves of one teacher; of several, each has its own loss as well."""
    title, key = (f", {teacher}", f"/{teacher}") if teacher else ("", "")
    masses = [
        Series(f"{run.name}: {side}", style, run.curve(f"{side}_uncommon_mass{key}"))
        for side, style in (("student", "run"), ("teacher", "control"))
    ]
    agreement, mass = "share of chunks whose likeliest token is the teacher's", "probability of tokens that are not in"
    return [
        line_chart(f"Distillation loss{title}", "nats per chunk", both(f"kd{key}")) if teacher else None,
        line_chart(f"Agreement{title}", agreement, both(f"top_1_agreement{key}")),
        line_chart(f"Uncommon tokens{title}", f"{mass} the common set, mean over chunks", masses),
    ]


def totals(run: RunRecord) -> list[tuple[str, str]]:
    """The run in a few numbers, as (name, value)."""
    if not run.metrics:
        return []
    speeds = sorted(speed for _, speed in run.curve("tokens_per_second"))
    numbers = [("Steps", f"{run.metrics[-1]['step']:,}"), ("Tokens", f"{sum(v for _, v in run.curve('tokens')):,.0f}")]
    if speeds:
        numbers.append(("Tokens per second, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    return [*numbers, ("Training time", f"{sum(v for _, v in run.curve('seconds')):,.0f} s")]


def versions() -> list[tuple[str, str]]:
    """The software that the page was made with."""
    found = [("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
