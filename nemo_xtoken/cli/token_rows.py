"""Two rows of tokens under one another, one cell per chunk, in the colours and the width of the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from nemo_xtoken.tokenizers import Tokenizer
    from nemo_xtoken.types import Chunks, Encoding

Kind = Literal["one_to_one", "divided", "inexact", "gap"]
COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta", "black on bright_blue")
STYLES = {"inexact": "red reverse", "gap": "dim"}
LABELS = ("student", "teacher")
MARGIN = max(map(len, LABELS)) + 2


@dataclass(frozen=True)
class Cell:
    """The tokens of one chunk on both sides, made visible; a gap has tokens on one side only."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    kind: Kind

    @property
    def rows(self) -> tuple[str, str, str]:
        """Both sides, and beneath them how many tokens meet how many, where that is not one and one."""
        counts = f"{len(self.student)}:{len(self.teacher)}"
        note = {"one_to_one": "", "divided": counts, "inexact": f"≈{counts}", "gap": "gap"}[self.kind]
        return "│".join(self.student), "│".join(self.teacher), note

    @property
    def width(self) -> int:
        """Columns of the terminal that the cell takes."""
        return max(map(cell_len, self.rows))


def cells(
    text: bytes, sides: tuple[Tokenizer, Tokenizer], encodings: tuple[Encoding, Encoding], chunks: Chunks
) -> list[Cell]:
    """Every token of both sides in order, chunk by chunk; those in no chunk as gaps where they stand."""
    student, teacher = (_pieces(text, *pair) for pair in zip(sides, encodings, strict=True))
    found: list[Cell] = []
    student_done = teacher_done = 0
    spans = zip(
        chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end, chunks.exact, strict=True
    )
    for student_start, student_end, teacher_start, teacher_end, exact in spans:
        found += _gaps(student[student_done:student_start], teacher[teacher_done:teacher_start])
        found.append(_chunk(student[student_start:student_end], teacher[teacher_start:teacher_end], bool(exact)))
        student_done, teacher_done = int(student_end), int(teacher_end)
    return found + _gaps(student[student_done:], teacher[teacher_done:])


def print_rows(console: Console, row: list[Cell]) -> None:
    """Prints the cells, wrapped between chunks, and a line that counts them."""
    index = 0
    for line in _lines(row, console.width - MARGIN):
        styles = [STYLES.get(cell.kind, COLOURS[(index + i) % len(COLOURS)]) for i, cell in enumerate(line)]
        index += len(line)
        for side, label in enumerate(LABELS):
            console.print(_line(label, line, side, styles), soft_wrap=True)
        console.print(_line("", line, 2, ["dim"] * len(line)), soft_wrap=True)
    console.print(summary(row), soft_wrap=True)


def summary(row: list[Cell]) -> str:
    """How many chunks there are of each kind."""
    counts = {kind: sum(cell.kind == kind for cell in row) for kind in ("one_to_one", "divided", "inexact", "gap")}
    chunks = len(row) - counts["gap"]
    tokens = sum(len(cell.student) for cell in row), sum(len(cell.teacher) for cell in row)
    return (
        f"{chunks} chunks of {tokens[0]} student and {tokens[1]} teacher tokens: {counts['one_to_one']} one to one, "
        f"{counts['divided']} divided, {counts['inexact']} inexact; {counts['gap']} gaps"
    )


def _pieces(text: bytes, tokenizer: Tokenizer, encoding: Encoding) -> list[str]:
    from nemo_xtoken.report.aligned_tokens import visible

    roles = tokenizer.special_roles
    spans = zip(encoding.ids.tolist(), encoding.starts, encoding.ends, strict=True)
    return [roles.get(token_id) or visible(text[start:end]) for token_id, start, end in spans]


def _chunk(student: list[str], teacher: list[str], exact: bool) -> Cell:
    kind: Kind = "one_to_one" if len(student) == len(teacher) == 1 else "divided"
    return Cell(tuple(student), tuple(teacher), kind if exact else "inexact")


def _gaps(student: list[str], teacher: list[str]) -> list[Cell]:
    return [Cell((token,), (), "gap") for token in student] + [Cell((), (token,), "gap") for token in teacher]


def _lines(row: list[Cell], width: int) -> Iterator[list[Cell]]:
    """The cells in lines of at most `width` columns; a cell that is wider has a line to itself."""
    line: list[Cell] = []
    used = 0
    for cell in row:
        if line and used + 1 + cell.width > width:
            yield line
            line, used = [], 0
        used += cell.width + (1 if line else 0)
        line.append(cell)
    if line:
        yield line


def _line(label: str, line: list[Cell], row: int, styles: list[str]) -> Text:
    """One row of some cells, each as wide as its cell."""
    text = Text.assemble((label.ljust(MARGIN), "bold"))
    for cell, style in zip(line, styles, strict=True):
        content = cell.rows[row]
        text.append(content + " " * (cell.width - cell_len(content)), style=style if content else "")
        text.append(" ")
    text.rstrip()
    return text
