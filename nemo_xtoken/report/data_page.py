"""Prepared data as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.statistics import Fill, Lengths
from nemo_xtoken.report.bars import BarChart
from nemo_xtoken.report.data_view import (
    COUNTED,
    TeacherView,
    default_lengths,
    fills,
    length_bars,
    open_data,
    sides_of,
    view_teacher,
)
from nemo_xtoken.report.html import template, write_page
from nemo_xtoken.report.run_history import size

SOURCES = 20
"""Files that are listed; of more, the first."""


@dataclass(frozen=True)
class DataView:
    """Everything that the page of prepared data shows."""

    prepared: PreparedData
    learnt_share: float
    lengths: tuple[Lengths, ...]
    length_bars: BarChart
    fills: tuple[Fill, ...]
    teachers: tuple[TeacherView, ...]


def view_data(path: Path, lengths: tuple[int, int] | None = None) -> DataView:
    """Look at prepared data; `lengths` are those of student and teacher sequences, by default several.

    Raises DataError for what is not prepared data.
    """
    prepared = open_data(path)
    sides = [prepared.student_lengths, *(teacher.lengths for teacher in prepared.teachers)]
    tokens = int(prepared.student_lengths.sum())
    return DataView(
        prepared=prepared,
        learnt_share=(tokens - int(prepared.loss_starts.sum())) / tokens,
        lengths=tuple(map(Lengths.of, sides)),
        length_bars=length_bars(prepared),
        fills=tuple(fills(prepared, [lengths] if lengths else default_lengths(prepared))),
        teachers=tuple(view_teacher(prepared, number) for number in range(len(prepared.teachers))),
    )


def write_data(view: DataView, path: Path) -> Path:
    """Write the page and return its path."""
    manifest = view.prepared.manifest
    page = template("data.html.j2", size=size).render(
        name=view.prepared.path.resolve().name,
        view=view,
        manifest=manifest,
        sides=sides_of(view.prepared),
        specs=[manifest.student.spec, *(teacher.spec for teacher in manifest.teachers)],
        sources=manifest.sources[:SOURCES],
        counted=min(len(view.prepared), COUNTED),
    )
    return write_page(path, page)
