"""The audit's picture."""

from __future__ import annotations

import errno
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from nemo_xtoken.cli.app import run
from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.projection import Audit, audit, build
from nemo_xtoken.report.audit_picture import draw, rows, write_picture
from tests.longest_match import BYTES, LongestMatch

STUDENT = LongestMatch([*BYTES, b"20", b" the"], spec="/a/long/way/" + "x" * 60 + "/student.json")
TEACHER = LongestMatch([*BYTES, b" the"], spec="teacher")


@pytest.fixture(scope="module")
def result() -> Audit:
    return audit(build(STUDENT, TEACHER), STUDENT, TEACHER, {"$2^0$": re.compile("20|1")})


def widths(axes: Axes) -> list[float]:
    """Of the blue bars, which lie over the others."""
    return [bar.get_width() for container in axes.containers[1::2] for bar in container]


def test_bars_are_as_long_as_their_classes_are_covered(result: Audit) -> None:
    (axes,) = draw(result).axes
    shares = [coverage.share for _, coverage, _ in rows(result)]
    assert widths(axes) == shares
    assert {0.0, 0.5, 1.0} <= set(shares)
    lengths = [bar.get_y() for container in axes.containers[::2] for bar in container]
    assert lengths == sorted(lengths)  # in the order of the audit, from the top
    assert axes.yaxis_inverted()


def test_texts_are_drawn_as_they_are_and_only_what_calls_for_a_loss_stands_out(result: Audit) -> None:
    figure = draw(result)
    texts = {text.get_text(): text for text in [*figure.axes[0].texts, *figure.texts]}
    assert not any(text.get_parse_math() for text in texts.values())
    assert "$2^0$ (asked for)" in texts
    bold = {name for name, text in texts.items() if text.get_fontweight() == "bold"}
    assert bold == {"Student tokens with an exact teacher token", "two-digit numeral", "0.0 %", "0 of 1"}
    assert any("P-KL" in name for name in texts)
    assert any("student …x" in name and name.endswith("/student.json · teacher teacher") for name in texts)


def test_nothing_runs_over_the_edge_or_into_another_text(result: Audit) -> None:
    long = replace(result, reason=" ".join(["many words"] * 24), teacher_spec="y" * 300)
    long = replace(long, user_classes={"name " * 20: result.user_classes["$2^0$"]})
    figure = draw(long)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in [*figure.axes[0].texts, *figure.texts]]
    for i, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, i
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, i
        assert not any(box.overlaps(other) for other in boxes[:i]), i


def test_the_file_is_a_picture_and_nothing_else_is_left(result: Audit, tmp_path: Path) -> None:
    path = write_picture(result, tmp_path / "made" / "audit.png")
    picture = imread(path)
    assert picture.shape[1] == 1800
    assert picture.std() > 0.1
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_that_fails_half_way_leaves_nothing(
    result: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/audit\.png'"):
        write_picture(result, tmp_path / "audit.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_says_what_to_install(
    result: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnavailableError, match=r"pip install 'nemo-xtoken\[plots\]', or leave it out"):
        write_picture(result, tmp_path / "audit.png")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_beside_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, png = str(tmp_path / "w.safetensors"), tmp_path / "audit.png"
    assert run(["projection", "build", "--student", "bytes", "--teacher", "bytes", "--out", file]) == 0
    capsys.readouterr()
    assert run(["projection", "audit", file, "--png", str(png), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recommended"] == "h_kl"
    assert png.read_bytes().startswith(b"\x89PNG")
