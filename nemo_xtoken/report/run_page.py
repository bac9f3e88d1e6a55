"""One self-contained HTML page about a run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nemo_xtoken.config import TeacherConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.projection import newest_automatic
from nemo_xtoken.report.class_losses import class_bars
from nemo_xtoken.report.curves import charts, legend
from nemo_xtoken.report.fp8_maps import read_maps
from nemo_xtoken.report.held_out import Comparison, compare
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.pair import Pair, load_pair
from nemo_xtoken.report.run_facts import lapses, shortfall, summary, totals
from nemo_xtoken.report.run_history import attempts, checkpoints, starts
from nemo_xtoken.report.run_record import CONFIG_FILE, RunRecord, read_run

PACKAGES = ("nemo-xtoken", "torch", "megatron-core", "numpy", "tokenizers", "transformer-engine", "apex")


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
    pairs, reason = read_pairs(run, projection, sentence)
    page = render(run, baseline, pairs, reason)
    return write_page(out or run_dir / "report.html", page)


def render(run: RunRecord, control: RunRecord | None, pairs: Sequence[Pair], reason: str) -> str:
    """The page's HTML; every text that is not the template's own is escaped."""
    runs = [run] if control is None else [run, control]
    return template("run.html.j2").render(
        run=run,
        legend=legend(runs),
        control=control,
        comparisons=compare_runs(run, control),
        bar_charts=class_bars(runs),
        charts=charts(runs),
        checkpoints=checkpoints(run.path),
        attempts=attempts(run.path),
        starts=starts(run.path),
        fp8_maps=read_maps(run.path),
        totals=totals(run),
        shortfall=shortfall(run),
        lapses=lapses(run),
        summary=summary(run),
        pairs=pairs,
        reason=reason,
        versions=versions(),
    )


def read_pairs(run: RunRecord, projection: Path | None, sentence: str | None) -> tuple[list[Pair], str]:
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


def compare_runs(run: RunRecord, control: RunRecord | None) -> tuple[Comparison, ...]:
    """Held-out numbers of the run, beside the control's where it was evaluated too."""
    if run.evaluation is None:
        return ()
    return compare(run.evaluation, control.evaluation if control else None)


def versions() -> list[tuple[str, str]]:
    """The software that the page was made with."""
    found = [("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
