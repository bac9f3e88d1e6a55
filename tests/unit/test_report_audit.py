"""The audit's page."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_xtoken.projection import audit, build
from nemo_xtoken.report.pair import make_pair
from nemo_xtoken.report.pair_page import write_pair
from tests.longest_match import BYTES, LongestMatch
from tests.unit.test_report import Balance

STUDENT = LongestMatch([*BYTES, b"20", b"<q>", b" \n", b""], {259: "<|s|>"}, spec="<i>student")
TEACHER = LongestMatch(BYTES, spec="teacher")


def page(path: Path) -> str:
    result = audit(build(STUDENT, TEACHER), STUDENT, TEACHER, {"<u>": re.compile("20|1")})
    pair = make_pair(build(STUDENT, TEACHER), STUDENT, TEACHER, result)
    return write_pair(pair, path / "audit.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_escaped_and_loads_nothing(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert Balance(html).loads == []
    for raw in ("<i>student", "<q>", "<u>", "<|s|>"):
        assert raw not in html
    assert "&lt;u&gt; <span" in html


def test_the_page_tells_coverage_loss_and_empty_rows(tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page(tmp_path)))
    assert "Two-digit numeral 1 0 0.0 %" in text
    assert "&lt;u&gt; asked for 2 1 50.0 %" in text
    assert "Recommended loss: P-KL" in text
    assert "Special tokens without a counterpart of their role or place in the teacher 1 &lt;|s|&gt;" in text
    assert "·⏎" in text


def test_a_pair_without_empty_rows_says_so(tmp_path: Path) -> None:
    matrix = build(TEACHER, TEACHER)
    pair = make_pair(matrix, TEACHER, TEACHER, audit(matrix, TEACHER, TEACHER))
    assert "No row of W is empty" in write_pair(pair, tmp_path / "audit.html").read_text()
