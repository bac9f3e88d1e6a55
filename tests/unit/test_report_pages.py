"""Which page a subject gets, the pages of data and of several runs, and their pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from nemo_xtoken import data, projection, tokenizers
from nemo_xtoken.cli.app import run
from nemo_xtoken.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from nemo_xtoken.config_io import flattened, save_run
from nemo_xtoken.data.chunk_counts import count_chunks
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.loss_config import LossConfig
from nemo_xtoken.report import PageOptions, write_page_of
from nemo_xtoken.report.class_losses import class_bars
from nemo_xtoken.report.comparison_page import config_rows, differing, held_out_rows, totals_rows
from nemo_xtoken.report.curves import charts, legend, style_of
from nemo_xtoken.report.data_page import view_data
from nemo_xtoken.report.data_view import length_bars, rounded_up
from nemo_xtoken.report.html import capital, grouped
from nemo_xtoken.report.pair_page import name_of
from nemo_xtoken.report.picture import draw_charts
from nemo_xtoken.report.run_facts import summary
from nemo_xtoken.report.run_record import names, read_run
from tests.unit.test_report import EVALUATION, Balance, rank_file, write_run

MODEL = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)


@pytest.fixture
def w(tmp_path: Path) -> Path:
    student = rank_file(tmp_path / "student.tiktoken", [b"20", b"201", b"75", b"he"])
    teacher = rank_file(tmp_path / "teacher.tiktoken", [b"he", b"ad"])
    projection.build(tokenizers.load(student), tokenizers.load(teacher)).save(tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def prepared(w: Path) -> Path:
    folder = w.parent
    texts = [f"he <i>{n}</i> ad 201\n" * (1 + n) for n in range(12)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    student, teacher = (tokenizers.load(f"{folder / name}.tiktoken?pattern=cl100k") for name in ("student", "teacher"))
    data.prepare([folder / "text.jsonl"], folder / "data", student, {"qwen": teacher})
    return folder / "data"


def config(folder: Path, *teachers: TeacherConfig, lr: float = 1e-3) -> RunConfig:
    return RunConfig(
        run_dir=str(folder),
        student=MODEL,
        teachers=teachers,
        data=DataConfig(path="d", student_sequence_length=8, teacher_sequence_length=8),
        optimizer=OptimizerConfig(lr=lr),
        train=TrainConfig(steps=3, micro_batch_size=1, global_batch_size=2),
    )


def teacher(name: str, **loss: object) -> TeacherConfig:
    return TeacherConfig(name=name, model=MODEL, checkpoint=name, loss=LossConfig(**loss))  # type: ignore[arg-type]


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8")))


# Which page


def test_each_subject_gets_its_own_page(tmp_path: Path, w: Path, prepared: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", kd=False)
    pages = {
        "A run of nemo_xtoken": write_page_of([one]),
        "2 runs": write_page_of([one, two], out=tmp_path / "runs.html"),
        "Prepared data of nemo_xtoken": write_page_of([prepared]),
        "<h1>student and teacher</h1>": write_page_of([w]),
    }
    assert [page.relative_to(tmp_path).as_posix() for page in pages.values()] == [
        "one/report.html",
        "runs.html",
        "data/report.html",
        "w.html",
    ]
    for title, page in pages.items():
        html = page.read_text()
        assert title in html
        assert Balance(html).loads == []
        assert "prefers-color-scheme: dark" in html


def test_the_command_takes_each_and_prints_the_page(
    w: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for subjects in ([prepared], [w], [write_run(tmp_path / "one"), write_run(tmp_path / "two")]):
        page, png = tmp_path / "pages" / "page.html", tmp_path / "pages" / "plots.png"
        assert run(["report", *map(str, subjects), "--out", str(page), "--png", str(png)]) == 0
        assert capsys.readouterr().out == f"{page}\n"
        assert imread(png).std() > 0.05
        for path in (page, png):
            path.unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PageOptions(control=Path("x")), "--control is for the page of a run; this one is of prepared data"),
        (PageOptions(sentence="x"), "--sentence is for the page of a run or a file of W"),
    ],
)
def test_an_option_of_another_page_is_wrong_use(options: PageOptions, message: str, prepared: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_page_of([prepared], options)
    assert not (prepared / "report.html").exists()


def test_what_is_no_subject_is_refused(tmp_path: Path, w: Path) -> None:
    with pytest.raises(DataError, match="nowhere, where there is nothing"):
        write_page_of([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty, which has neither manifest\.json nor any of config\.yaml"):
        write_page_of([tmp_path / "empty"])
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ConfigError, match=r"got the file .*student\.tiktoken"):
        write_page_of([tmp_path / "student.tiktoken"])
    with pytest.raises(ConfigError, match=r"have to be runs, to be compared; got .*w\.safetensors as well"):
        write_page_of([write_run(tmp_path / "run"), w])


def test_a_run_without_a_curve_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "bare" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match="bare has nothing to draw yet"):
        write_page_of([tmp_path / "bare"], png=tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


# Prepared data


def test_the_kinds_of_chunks_are_those_of_the_text(prepared: Path) -> None:
    view = view_data(prepared)
    folder = prepared.parent
    sides = (tokenizers.load(f"{folder / name}.tiktoken?pattern=cl100k") for name in ("student", "teacher"))
    (qwen,) = view.teachers
    assert qwen.counts == count_chunks([folder / "text.jsonl"], *sides)
    assert qwen.counts.one_to_many > 0
    shares = [bars[0].text for _, bars in qwen.kinds.rows]
    assert shares[1] == f"{100 * qwen.counts.one_to_many / qwen.counts.chunks:.2f} %"


def test_the_page_of_data_shows_its_documents_as_they_were_cut(prepared: Path) -> None:
    html = write_page_of([prepared]).read_text()
    assert "The beginning of document 12" in html
    assert '<li class="chunk divided"><div><span class="token" title="student token 257">201</span>' in html
    assert "<i>" not in html
    assert ">&lt;</span>" in html
    assert "qwen" in html


def test_every_document_is_in_one_range_of_lengths_on_each_side(prepared: Path) -> None:
    view = view_data(prepared)
    for side in range(2):
        assert sum(int(bars[side].text) for _, bars in length_bars(view.prepared).rows) == 12
    assert max(bar.length for _, bars in view.length_bars.rows for bar in bars) == 1.0


def test_the_fill_is_shown_for_the_lengths_that_are_asked_for(prepared: Path) -> None:
    (fill,) = view_data(prepared, (300, 400)).fills
    assert (fill.student_sequence_length, fill.teacher_sequence_lengths) == (300, (400,))
    page = write_page_of([prepared], PageOptions(student_length=300, teacher_length=400))
    assert f"300 and 400 {fill.samples} " in text_of(page)


def test_data_whose_tokenizer_has_gone_still_has_a_page(prepared: Path) -> None:
    (prepared.parent / "teacher.tiktoken").unlink()
    text = text_of(write_page_of([prepared]))
    assert "No examples are shown" in text
    assert "Chunks by kind" in text


def test_data_without_a_teacher_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one text")
    data.prepare([tmp_path / "text.txt"], tmp_path / "data", tokenizers.load("bytes"), {})
    assert "prepared without a teacher" in text_of(write_page_of([tmp_path / "data"]))


def test_the_fill_is_shown_where_the_teacher_has_room_for_the_same_text(prepared: Path) -> None:
    view = view_data(prepared)
    student, (qwen,) = view.prepared.student_lengths, view.prepared.teachers
    ratio = float(qwen.lengths.sum() / student.sum())
    assert ratio > 1.05
    pairs = [(fill.student_sequence_length, fill.teacher_sequence_lengths) for fill in view.fills]
    assert pairs[0] == (512, (512,))
    assert pairs[1] == (512, (rounded_up(512 * ratio),))
    assert view.fills[1].student >= view.fills[0].student
    assert f"512 and {pairs[1][1][0]:,} " in text_of(write_page_of([prepared]))


# A pair


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("a/student.tiktoken?pattern=cl100k", "student"),
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("models/qwen3/tokenizer.json", "qwen3"),
        ("bytes", "bytes"),
    ],
)
def test_a_tokenizer_has_a_short_name(spec: str, name: str) -> None:
    assert name_of(spec) == name


def test_the_page_of_a_pair_marks_critical_classes_and_groups_digits(w: Path) -> None:
    html = write_page_of([w]).read_text()
    assert '<tr class="critical"><th scope="row">Two-digit numeral</th>' in html
    assert html.count('class="critical"') == 2, "words that are not common are not critical"
    assert "Orange is a critical class" in html
    assert "Beta, the first piece&#39;s weight" in html
    assert grouped("P-KL: 1000 of 12345 numerals, 100 of 100") == "P-KL: 1,000 of 12,345 numerals, 100 of 100"
    assert capital("partial utf8") == "Partial UTF-8"


# Several runs


def test_the_best_of_several_runs_stands_out(tmp_path: Path) -> None:
    values = [{"bits_per_byte": 1.5, "tokens": 64}, {"bits_per_byte": 1.2, "tokens": 64}, {"exact_answers": 0.5}]
    runs = [read_run(write_run(tmp_path / f"run-{n}", evaluation=value)) for n, value in enumerate(values)]
    rows = {row.name: row for row in held_out_rows(runs)}
    assert rows["Loss per byte"].cells == ("1.500", "1.200", "–")
    assert rows["Loss per byte"].best == (False, True, False)
    assert rows["Tokens"].best == (False, False, False)
    assert rows["Exact answers"].best == (False, False, False), "one alone is not the best"


def test_only_what_differs_is_shown_of_configs(tmp_path: Path) -> None:
    configs = [
        flattened(config(tmp_path / "a", teacher("qwen", mode="p_kl"))),
        flattened(config(tmp_path / "b", teacher("qwen", mode="h_kl"), lr=2e-3)),
        flattened(config(tmp_path / "c")),
        flattened(config(tmp_path / "d", teacher("qwen", mode="p_kl"), teacher("own", mode="same_tokenizer"))),
    ]
    assert differing(configs) == {
        "teachers": (
            "qwen, colocated, p_kl",
            "qwen, colocated, h_kl",
            "no teacher",
            "qwen, colocated, p_kl, own, colocated, same_tokenizer",
        ),
        "teachers.0.loss.mode": ("p_kl", "h_kl", "–", "p_kl"),
        "optimizer.lr": ("0.001", "0.002", "0.001", "0.001"),
    }
    assert differing(configs[:1] + configs[3:]) == {
        "teachers.1": ("–", "own, colocated, same_tokenizer"),
    }
    assert differing([configs[0], configs[0]]) == {}


def test_the_page_of_several_runs_draws_each_over_the_others(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, evaluation=EVALUATION, steps=20) for name in ("a", "b", "c")]
    for number, path in enumerate(runs):
        save_run(config(path, lr=1e-3 * (1 + number)), path / "config.yaml")
    html = write_page_of(runs, out=tmp_path / "runs.html").read_text()
    first = html[html.index('<svg viewBox="0 0 460') :]
    first = first[: first.index("</svg>")]
    assert [f'class="mean {style_of(number)}"' in first for number in range(4)] == [True, True, True, False]
    assert html.count(">b</span>") == 2, "one legend of the bars and one of all charts"
    assert "optimizer.lr" in html
    save_run(config(runs[0]), runs[1] / "config.yaml")
    save_run(config(runs[0]), runs[2] / "config.yaml")
    assert "Nothing but the directory" in write_page_of(runs, out=tmp_path / "runs.html").read_text()


def test_a_run_without_config_is_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    text = text_of(write_page_of(runs, out=tmp_path / "runs.html"))
    assert "a kept no config" in text
    assert "None of these runs was evaluated" in text
    assert "Nothing is compared" in text


def test_a_run_without_config_does_not_keep_the_others_from_being_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b", "c", "d")]
    for number in (0, 2):
        save_run(config(runs[number], lr=1e-3 * (1 + number)), runs[number] / "config.yaml")
    (runs[3] / "config.yaml").write_text("nonsense: 1\n")
    rows, problem = config_rows([read_run(path) for path in runs])
    assert {row.name: row.cells for row in rows} == {"optimizer.lr": ("0.001", "–", "0.003", "–")}
    assert problem.startswith("b kept no config. The config of d could not be read: ")


def test_several_runs_are_compared_in_all(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, steps=steps) for name, steps in (("a", 3), ("b", 2))]
    save_run(config(runs[1]), runs[1] / "config.yaml")
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "memory_mib": 7000.0}\n')
    rows = {row.name: row.cells for row in totals_rows([read_run(path) for path in runs])}
    assert rows["Steps"] == ("3", "3 of 3")
    assert rows["Tokens per second, median"] == ("1,000", "1,000")
    assert rows["Memory of the first rank, most"] == ("–", "7,000 MiB")
    assert rows["Training time"] == ("0 s", "0 s")


def test_a_run_tells_in_a_few_lines_what_it_was(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    assert summary(read_run(path)) == []
    run = config(path, teacher("qwen", mode="h_kl"))
    save_run(run, path / "config.yaml")
    assert summary(read_run(path)) == [
        ("Loss", "H-KL with qwen, on the student's ranks"),
        ("Layout", "one rank, on CUDA, BF16" if run.train.bf16 else "one rank, on CUDA, FP32"),
        ("Data", "d, 2 sequences of 8 and 8 tokens a step"),
    ]
    assert "H-KL with qwen, on the student&#39;s ranks" in write_page_of([path]).read_text()
    control = config(path)
    save_run(replace(control, parallel=ParallelConfig(data_parallel_size=2)), path / "config.yaml")
    told = dict(summary(read_run(path)))
    assert told["Loss"] == "cross-entropy alone, no teacher"
    assert told["Layout"].startswith("DP 2, on CUDA")


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / folder / "run")) for folder in ("a", "b")]
    assert names(runs) == [str(run.path) for run in runs]


def test_a_ninth_run_is_not_drawn_as_the_first() -> None:
    assert len({style_of(number) for number in range(64)}) == 64
    assert (style_of(0), style_of(7), style_of(8)) == ("s0 d0", "s7 d7", "s0 d1")


def test_losses_of_another_kind_are_said_to_be_no_measure_of_each_other(tmp_path: Path) -> None:
    losses = ({"mode": "p_kl"}, {"mode": "h_kl"}, {"mode": "p_kl", "block_rows": 7})
    runs: list[Path] = []
    for number, loss in enumerate(losses):
        runs.append(write_run(tmp_path / f"run-{number}"))
        save_run(config(runs[-1], teacher("qwen", **loss)), runs[-1] / "config.yaml")
    control = write_run(tmp_path / "control", kd=False)
    save_run(config(control), control / "config.yaml")
    for paths, differ in ((runs, True), ([runs[0], runs[2], control], False)):
        captions = {chart.title: chart.caption for chart in charts([read_run(path) for path in paths])}
        for title in ("Distillation loss", "Balance ratio"):
            assert captions[title].endswith("; comparable only between runs of the same loss") == differ
        assert "comparable" not in captions["Cross-entropy"]


def test_the_teacher_of_a_mass_has_a_line_of_no_run(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, kd=name == "b")) for name in ("a", "b", "c")]
    (chart,) = (chart for chart in charts(runs) if chart.title == "Uncommon tokens")
    assert [line.name for line in chart.lines] == ["b: student", "b: teacher"]
    assert [line.style for line in chart.lines] == [style_of(1), "s1 d3"]
    assert "s1 d3" not in {style_of(number) for number in range(8)}


# Pictures


@pytest.mark.parametrize(("name", "begin"), [("x.svg", b"<?xml"), ("x.pdf", b"%PDF"), ("x.PNG", b"\x89PNG")])
def test_a_picture_has_the_format_of_its_name(name: str, begin: bytes, tmp_path: Path) -> None:
    write_page_of([write_run(tmp_path / "run", steps=3)], png=tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_picture_of_another_format_is_refused_before_the_page_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    with pytest.raises(ConfigError, match=r"ending in \.png, \.svg or \.pdf, got .*x\.jpg"):
        write_page_of([run], png=tmp_path / "x.jpg")
    assert not (run / "report.html").exists()


def test_no_text_of_a_picture_lies_on_another(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / f"a-long-name-of-run-{n}", evaluation=EVALUATION)) for n in range(9)]
    drawn = [*class_bars(runs), *charts(runs)]
    figure = draw_charts("nine runs", drawn, legend(runs))
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.texts if isinstance(text, Text) and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len([text for text, _ in boxes if text.startswith("a-long-name")]) == 9, "each name once, in one legend"
    for i, (text, box) in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text
        assert [other for other, one in boxes[i + 1 :] if box.overlaps(one)] == [], text
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes), text


def test_a_picture_has_the_marks_of_the_page(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", kd=False, steps=3))
    drawn = charts([run])
    figure = draw_charts("run", drawn, legend([run]))
    for axes, chart in zip(figure.axes, drawn, strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
        assert [text.get_text() for text in axes.get_yticklabels()] == [tick.label for tick in chart.y_ticks]
        assert axes.get_legend() is None


def test_no_chart_of_a_picture_lies_on_another(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, evaluation=EVALUATION)) for name in ("a", "b")]
    few, line = class_bars(runs)[0], charts(runs)[0]
    many = replace(few, rows=few.rows * 10)
    boxes = [axes.get_position() for axes in draw_charts("all", [line, many, few, line, many, line]).axes]
    assert [box.width > 0.7 for box in boxes] == [False, True, False, False, True, False]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
        assert 0 <= one.x0 < one.x1 <= 1
        assert 0 <= one.y0 < one.y1 <= 1
