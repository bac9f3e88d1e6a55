from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
from rich.cells import cell_len
from rich.console import Console

from nemo_xtoken.alignment import align
from nemo_xtoken.cli.token_rows import Cell, cells, print_rows
from nemo_xtoken.types import Encoding, role_code


class Words:
    """A tokenizer with one special token, id 0."""

    special_roles: ClassVar = {0: "bos"}


def encoding(*spans: tuple[int, int], bos: bool = False) -> Encoding:
    tokens = ([(0, 0)] if bos else []) + list(spans)
    roles = [role_code("bos")] * bos + [0] * len(spans)
    ids = [0] * bos + [1] * len(spans)
    starts, ends = (np.array(side, np.int64) for side in zip(*tokens, strict=True))
    return Encoding(np.array(ids, np.int32), starts, ends, np.array(roles, np.uint32))


def shown(row: list[Cell], width: int, **options: object) -> str:
    file = io.StringIO()
    print_rows(Console(file=file, width=width, highlight=False, **options), row)  # type: ignore[arg-type]
    return file.getvalue()


def test_tokens_meet_in_the_cell_of_their_chunk() -> None:
    pair = encoding((0, 2), (2, 4)), encoding((0, 1), (1, 2), (2, 4))
    row = cells(b"12 a", (Words(), Words()), pair, align(*pair))  # type: ignore[arg-type]
    assert row == [Cell(("12",), ("1", "2"), "divided"), Cell(("·a",), ("·a",), "one_to_one")]


def test_a_token_in_no_chunk_is_a_gap_where_it_stands() -> None:
    pair = encoding((0, 2), bos=True), encoding((0, 2))
    row = cells(b"12", (Words(), Words()), pair, align(*pair))  # type: ignore[arg-type]
    assert row[0] == Cell(("bos",), (), "gap")
    assert row[1].student == row[1].teacher == ("12",)


def test_lines_wrap_between_chunks_and_keep_to_the_width() -> None:
    row = [Cell(("中文",), ("中", "文"), "divided")] * 20
    lines = shown(row, 40).splitlines()[:-1]
    assert max(map(cell_len, lines)) <= 40
    students = [line for line in lines if line.startswith("student")]
    assert len(students) > 1
    assert sum(line.count("中文") for line in students) == 20


def test_a_cell_wider_than_the_terminal_has_a_line_to_itself() -> None:
    row = [Cell(("a" * 50,), ("a" * 50,), "one_to_one"), Cell(("b",), ("b",), "one_to_one")]
    lines = shown(row, 30).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("student")] == ["a" * 50, "b"]


def test_neighbouring_chunks_have_different_colours_and_tokens_are_not_markup() -> None:
    coloured = shown([Cell(("[red]",), ("[red]",), "one_to_one")] * 2, 80, force_terminal=True, color_system="standard")
    first, second = coloured.splitlines()[0].split("[red]")[:2]
    assert "\x1b[" in first
    assert first.rpartition("\x1b[")[2] != second.rpartition("\x1b[")[2]


def test_inexact_chunks_are_marked() -> None:
    assert "≈1:2" in shown([Cell(("ab",), ("a", "b"), "inexact")], 80)
