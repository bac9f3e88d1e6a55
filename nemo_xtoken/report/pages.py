"""The page for what it is given: a run, several runs, prepared data, or the file of W."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from nemo_xtoken.data.layout import MANIFEST
from nemo_xtoken.errors import DataError, require
from nemo_xtoken.report.audit_picture import write_picture
from nemo_xtoken.report.class_losses import class_bars
from nemo_xtoken.report.comparison_page import write_comparison
from nemo_xtoken.report.curves import charts, legend
from nemo_xtoken.report.data_page import view_data, write_data
from nemo_xtoken.report.data_view import sides_of
from nemo_xtoken.report.pair import load_pair
from nemo_xtoken.report.pair_page import write_pair
from nemo_xtoken.report.picture import check_format, write_charts
from nemo_xtoken.report.run_page import write_report
from nemo_xtoken.report.run_record import SIGNS, is_run, names, read_run

Kind = Literal["run", "runs", "data", "pair"]
SubjectKind = Literal["run", "data", "pair"]
COMPARISON_FILE = Path("comparison.html")
LONGEST_TITLE = 70
WHAT = "the directory of a run or of prepared data, or a file of W"


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What a page is asked for beside its subject; None takes the default. Each kind of page has some of them.

    control, projection, sentence   as of `run_page.write_report`; a pair has a sentence as well
    student_length, teacher_length  of the sequences that data is packed into
    """

    control: Path | None = None
    projection: Path | None = None
    sentence: str | None = None
    student_length: int | None = None
    teacher_length: int | None = None


OPTIONS: dict[Kind, tuple[str, ...]] = {
    "run": ("control", "projection", "sentence"),
    "runs": (),
    "data": ("student_length", "teacher_length"),
    "pair": ("sentence",),
}
NAMES: dict[Kind, str] = {"run": "a run", "runs": "several runs", "data": "prepared data", "pair": "a file of W"}


def write_page_of(
    subjects: Sequence[Path], options: PageOptions | None = None, out: Path | None = None, png: Path | None = None
) -> Path:
    """Write the page of the subjects, and its plots as one picture where `png` says so; returns the page's path.

    out  by default report.html in the directory of the run or of the data, W's file with .html, or comparison.html here
    Raises ConfigError for subjects that are of no kind, an option that the kind does not have, or a picture of no known
    format, DataError where there is nothing; else as of each page.
    """
    options = options or PageOptions()
    kind = kind_of(subjects)
    check_options(kind, options)
    if png is not None:
        check_format(png)
    write = {"run": _write_run, "runs": _write_runs, "data": _write_data, "pair": _write_pair}[kind]
    return write(subjects, options, out, png)


def kind_of(subjects: Sequence[Path]) -> Kind:
    """What the subjects are. Raises ConfigError, and DataError where there is nothing."""
    kinds: list[Kind] = [_kind_of_one(path) for path in subjects]
    if len(kinds) == 1:
        return kinds[0]
    others = [str(path) for path, kind in zip(subjects, kinds, strict=True) if kind != "run"]
    require(not others, f"several subjects have to be runs, to be compared; got {', '.join(others)} as well")
    return "runs"


def _kind_of_one(path: Path) -> SubjectKind:
    if path.is_file():
        require(path.suffix == ".safetensors", f"expected {WHAT} (.safetensors), got the file {path}")
        return "pair"
    if not path.is_dir():
        raise DataError(f"expected {WHAT}, got {path}, where there is nothing")
    if (path / MANIFEST).is_file():
        return "data"
    if not is_run(path):
        raise DataError(f"expected {WHAT}, got {path}, which has neither {MANIFEST} nor any of {', '.join(SIGNS)}")
    return "run"


def check_options(kind: Kind, options: PageOptions) -> None:
    """Raises ConfigError for an option that this kind of page does not have."""
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    for name in given:
        owners = " or ".join(NAMES[owner] for owner, names in OPTIONS.items() if name in names)
        flag = f"--{name.replace('_', '-')}"
        require(
            name in OPTIONS[kind], f"{flag} is for the page of {owners}; this one is of {NAMES[kind]}: leave it out"
        )


def _write_run(subjects: Sequence[Path], options: PageOptions, out: Path | None, png: Path | None) -> Path:
    (run_dir,) = subjects
    page = write_report(
        run_dir, control=options.control, projection=options.projection, sentence=options.sentence, out=out
    )
    if png is not None:
        runs = [read_run(path) for path in (run_dir, options.control) if path is not None]
        write_charts(" beside ".join(names(runs)), [*class_bars(runs), *charts(runs)], png, legend(runs))
    return page


def _write_runs(subjects: Sequence[Path], _: PageOptions, out: Path | None, png: Path | None) -> Path:
    runs = [read_run(path) for path in subjects]
    page = write_comparison(runs, out or COMPARISON_FILE)
    if png is not None:
        title = ", ".join(names(runs))
        title = title if len(title) <= LONGEST_TITLE else f"{len(runs)} runs"
        write_charts(title, [*class_bars(runs), *charts(runs)], png, legend(runs))
    return page


def _write_data(subjects: Sequence[Path], options: PageOptions, out: Path | None, png: Path | None) -> Path:
    (path,) = subjects
    student = options.student_length or options.teacher_length
    view = view_data(path, None if student is None else (student, options.teacher_length or student))
    page = write_data(view, out or path / "report.html")
    if png is not None:
        bars = [view.length_bars, *(teacher.kinds for teacher in view.teachers)]
        write_charts(f"Prepared data: {path.resolve().name}", bars, png, sides_of(view.prepared))
    return page


def _write_pair(subjects: Sequence[Path], options: PageOptions, out: Path | None, png: Path | None) -> Path:
    (path,) = subjects
    pair = load_pair(path, options.sentence)
    page = write_pair(pair, out or path.with_suffix(".html"))
    if png is not None:
        write_picture(pair.audit, png)
    return page
