"""Every page of the report as a real browser shows it, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import data, projection, tokenizers
from nemo_xtoken.report import PageOptions, write_page_of
from nemo_xtoken.report.alignment_page import write_alignment
from tests.conftest import CI
from tests.pages.browser import Browser, executable
from tests.unit.test_report import EVALUATION, SENTENCE, rank_file, write_run
from tests.unit.test_report_fp8 import record, write
from tests.unit.test_report_history import write_history

WIDTHS = (360, 1200)
SCHEMES = ("light", "dark")
SMALLEST = 10.0
"""CSS pixels of the smallest text on any page: weights in the cells of W on a phone."""

Maker = Callable[[Path], Path]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; skips where there is none, but fails under CI."""
    program = executable()
    if program is None:
        give_up = pytest.fail if CI else pytest.skip
        give_up("no Chromium on PATH; apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def make_pair(folder: Path) -> Path:
    student = rank_file(folder / "student.tiktoken", [b"20", b"201", b"75", b"he", " é".encode()])
    teacher = rank_file(folder / "teacher.tiktoken", [b"he", b"ad"])
    path = folder / "w.safetensors"
    projection.build(tokenizers.load(student), tokenizers.load(teacher)).save(path)
    return path


def a_run(folder: Path) -> Path:
    """With everything that a run can have, and a long name."""
    run = write_run(folder / "distilled-with-a-name-that-is-far-too-long-for-a-phone", evaluation=EVALUATION, steps=200)
    control = write_run(folder / "control", kd=False, evaluation=EVALUATION | {"bits_per_byte": 1.25})
    write(run, [record(step, 2.0**step, step / 1000) for step in range(1, 60)])
    write_history(run)
    (run / "config.yaml").write_text(f"run_dir: {'long/' * 60}\n")
    return write_page_of([run], PageOptions(control=control, projection=make_pair(folder), sentence=SENTENCE * 5))


def a_bare_run(folder: Path) -> Path:
    (folder / "bare" / "checkpoints").mkdir(parents=True)
    return write_page_of([folder / "bare"])


def several_runs(folder: Path) -> Path:
    """More than there are colours, one of them very fast and long."""
    runs = [write_run(folder / f"a-long-name-of-run-{n}", evaluation=EVALUATION, steps=20 + n) for n in range(9)]
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 250000, "ce": 0.00012, "tokens_per_second": 1234567.0, "grad_norm": 1e-7}\n')
    return write_page_of(runs, out=folder / "runs.html")


def bare_runs(folder: Path) -> Path:
    for name in ("one", "two"):
        (folder / name / "checkpoints").mkdir(parents=True)
    return write_page_of([folder / "one", folder / "two"], out=folder / "bare.html")


def prepared_data(folder: Path) -> Path:
    make_pair(folder)
    text = folder / "text.jsonl"
    lines = [json.dumps({"text": f"he had {n} and 201 é heads\n" * (1 + n % 40)}) for n in range(120)]
    text.write_text("\n".join(lines))
    specs = {name: tokenizers.load(f"{folder / name}.tiktoken?pattern=cl100k") for name in ("student", "teacher")}
    teachers = {"teacher": specs["teacher"], "bytes": tokenizers.load("bytes")}
    data.prepare([text], folder / "data", specs["student"], teachers)
    return write_page_of([folder / "data"])


def data_without_a_teacher(folder: Path) -> Path:
    (folder / "text.txt").write_text("one text")
    data.prepare([folder / "text.txt"], folder / "data", tokenizers.load("bytes"), {})
    return write_page_of([folder / "data"])


def a_pair(folder: Path) -> Path:
    return write_page_of([make_pair(folder)])


def an_equal_pair(folder: Path) -> Path:
    both = tokenizers.load("bytes")
    projection.build(both, both).save(folder / "w.safetensors")
    return write_page_of([folder / "w.safetensors"])


def an_alignment(folder: Path) -> Path:
    make_pair(folder)
    student = tokenizers.load(f"{folder / 'student.tiktoken'}?pattern=cl100k")
    return write_alignment(folder / "alignment.html", SENTENCE * 9, student, tokenizers.load("bytes"))


MAKERS: tuple[Maker, ...] = (
    a_run,
    a_bare_run,
    several_runs,
    bare_runs,
    prepared_data,
    data_without_a_teacher,
    a_pair,
    an_equal_pair,
    an_alignment,
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_page_is_sound_in_a_browser(make: Maker, browser: Browser, tmp_path: Path) -> None:
    page = make(tmp_path)
    for width in WIDTHS:
        looks = {scheme: browser.look(page, width, scheme) for scheme in SCHEMES}
        for look in looks.values():
            assert look.messages == []
            assert look.requests == []
            assert look.scroll_width == look.width, "the page scrolls sideways"
            assert look.overlapping == []
            assert look.cut == []
            assert look.hidden == []
            assert look.smallest >= SMALLEST
        light, dark = (looks[scheme] for scheme in SCHEMES)
        assert contrast(light.background, light.ink) > 7
        assert contrast(dark.background, dark.ink) > 7
        assert luminance(light.background) > 0.8
        assert luminance(dark.background) < 0.05


def test_the_check_sees_what_it_looks_for(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body style='background:#fff'>"
        "<img src='other.png'><div style='width:500px'>wide</div><script>console.error('no'); missing()</script>"
        "<svg aria-label=a><text x=-9 y=20>one</text><text x=-9 y=20>two</text></svg><p style='font-size:6px'>tiny</p>"
        "<section style='width:200px;overflow:auto'><table><td style='min-width:300px'>a number</table></section>"
    )
    look = browser.look(page, 360, "dark")
    assert [Path(url).name for url in look.requests] == ["other.png"]
    assert sum("missing is not defined" in message for message in look.messages) == 1
    assert len(look.messages) >= 2
    assert look.scroll_width > look.width
    assert look.overlapping == ["a: one and two"]
    assert look.cut == ["one", "two"]
    assert look.hidden == ["a number"]
    assert look.smallest == 6
    assert luminance(look.background) > 0.8, "a page without a dark scheme stays light"


def luminance(colour: str) -> float:
    """Of rgb(r, g, b), 0 to 1, as WCAG defines it."""
    channels = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as WCAG defines it, 1 to 21; 7 is what it asks for at best."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
