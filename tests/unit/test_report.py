from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import projection, tokenizers
from nemo_xtoken.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TeacherConfig, TrainConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.errors import DataError, ProjectionError
from nemo_xtoken.report import write_report
from nemo_xtoken.report.aligned_tokens import align_sentence, visible
from nemo_xtoken.report.class_losses import class_bars
from nemo_xtoken.report.corner import corner
from nemo_xtoken.report.held_out import compare
from nemo_xtoken.report.run_record import read_run

EVALUATION = {
    "nats_per_byte": 0.797,
    "bits_per_byte": 1.15,
    "loss_multi_digit": 5.5,
    "loss_rest": 2.4,
    "probability_multi_digit": 0.03,
    "tokens": 9000.0,
    "multi_digit_tokens": 900.0,
    "bytes": 31_000.0,
    "exact_answers": 0.0625,
    "questions": 64.0,
    "loss/two_digit_numeral": 5.5,
    "tokens/two_digit_numeral": 900.0,
    "loss/word": 2.4,
    "tokens/word": 8100.0,
}
SENTENCE = "In 1924 <b>she</b> had 201 & 75."
VOID = {"meta", "line", "path"}


def write_run(path: Path, *, kd: bool = True, evaluation: dict[str, float] | None = None, steps: int = 60) -> Path:
    path.mkdir(parents=True)
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "loss": 4 / step, "ce": 2 / step, "lr": 1e-3, "grad_norm": 1.0, "chunks": 10}
            record |= {"tokens": 100, "tokens_per_second": 1000.0, "seconds": 0.1}
            file.write(json.dumps(record | (of_a_teacher(step) if kd else {})) + "\n")
    if evaluation:
        (path / "evaluation.json").write_text(json.dumps(evaluation))
    return path


def of_a_teacher(step: int) -> dict[str, float]:
    masses = {"student_uncommon_mass": 0.1 / step, "teacher_uncommon_mass": 0.1}
    return {"kd": 1 / step, "ratio": 2.0, "top_1_agreement": 0.5, **masses}


def rank_file(path: Path, extra: list[bytes]) -> str:
    import base64

    tokens = [bytes([value]) for value in range(256)] + extra
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return f"{path}?pattern=cl100k"


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    student = rank_file(tmp_path / "student.tiktoken", [b"20", b"201", b"75", b"he"])
    teacher = rank_file(tmp_path / "teacher.tiktoken", [b"he", b"ad"])
    matrix = projection.build(tokenizers.load(student), tokenizers.load(teacher))
    matrix.save(tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn, and collects what the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_full_page_is_well_formed_and_loads_nothing(tmp_path: Path, pair_file: Path) -> None:
    run = write_run(tmp_path / "distilled", evaluation=EVALUATION)
    control = write_run(tmp_path / "control", kd=False, evaluation=EVALUATION | {"bits_per_byte": 1.25})
    page = write_report(run, control=control, projection=pair_file, sentence=SENTENCE)
    html = page.read_text()
    assert page == run / "report.html"
    assert Balance(html).loads == []
    assert "url(" not in html
    assert "@import" not in html
    assert html.count('role="img"') == 8
    assert "distilled: teacher" in html, "the masses on uncommon tokens are drawn for both sides"
    assert "−8.0 %, better" in html


def test_every_text_of_the_user_is_escaped(tmp_path: Path, pair_file: Path) -> None:
    run = write_run(tmp_path / "<i>run&", evaluation=EVALUATION)
    (run / "config.yaml").write_text("note: <script>alert(1)</script>\n")
    control = write_run(tmp_path / "<u>control", kd=False, evaluation=EVALUATION)
    html = write_report(run, control=control, projection=pair_file, sentence=SENTENCE).read_text()
    for raw in ("<i>", "<u>", "<script", "<b>she"):
        assert raw not in html
    assert "&lt;script&gt;" in html
    Balance(html)


def test_a_bare_run_gets_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    (run / "checkpoints").mkdir(parents=True)
    html = write_report(run, out=tmp_path / "pages" / "bare.html").read_text()
    Balance(html)
    for sentence in ("was not evaluated", "has logged no steps", "no teacher", "kept no config"):
        assert sentence in html
    assert "<svg" not in html


def test_a_run_without_control_is_compared_with_nothing(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "alone", evaluation=EVALUATION)).read_text()
    Balance(html)
    assert "better" not in re.sub(r"<style>.*</style>", "", html, flags=re.DOTALL)


@pytest.mark.parametrize("named", ["w.safetensors", None])
def test_the_pair_is_that_of_the_projection_which_the_run_names_or_has_built(
    named: str | None, tmp_path: Path, pair_file: Path
) -> None:
    run = write_run(tmp_path / "run")
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    config = RunConfig(
        run_dir=str(run),
        student=model,
        teachers=(TeacherConfig(model=model, checkpoint="t", projection=named and str(pair_file)),),
        data=DataConfig(path="d", student_sequence_length=8, teacher_sequence_length=8),
        optimizer=OptimizerConfig(lr=1e-3),
        train=TrainConfig(steps=3, micro_batch_size=1, global_batch_size=1),
    )
    save_run(config, run / "config.yaml")
    if named is None:
        assert "has not built its projection yet" in write_report(run).read_text()
        pair_file.rename(run / "projection-0123.safetensors")
    assert "Recommended loss: P-KL" in write_report(run).read_text()


def test_a_run_with_several_teachers_shows_each(tmp_path: Path, pair_file: Path) -> None:
    run = write_run(tmp_path / "run", kd=False)
    with (run / "metrics.jsonl").open("w") as file:
        for step in (1, 2, 3):
            own = {
                f"{name}/{teacher}": value for teacher in ("own", "other") for name, value in of_a_teacher(step).items()
            }
            file.write(json.dumps({"step": step, "ce": 2 / step, "kd": 3 / step, **own}) + "\n")
    student = rank_file(tmp_path / "student.tiktoken", [b"20", b"201", b"75", b"he"])
    same = projection.build(tokenizers.load(student), tokenizers.load(student))
    same.save(run / "projection-0123.safetensors")
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    config = RunConfig(
        run_dir=str(run),
        student=model,
        teachers=(
            TeacherConfig(name="other", model=model, checkpoint="t", projection=str(pair_file)),
            TeacherConfig(name="own", model=model, checkpoint="t"),
        ),
        data=DataConfig(path="d", student_sequence_length=8, teacher_sequence_length=8),
        optimizer=OptimizerConfig(lr=1e-3),
        train=TrainConfig(steps=3, micro_batch_size=1, global_batch_size=1),
    )
    save_run(config, run / "config.yaml")
    html = write_report(run).read_text()
    assert Balance(html).loads == []
    for title in (
        "Distillation loss",
        *(f"{name}, {t}" for name in ("Distillation loss", "Agreement") for t in ("own", "other")),
    ):
        assert f"<h3>{title}</h3>" in html
    for teacher in (tmp_path / "teacher.tiktoken", tmp_path / "student.tiktoken"):
        assert f"find in the teacher, {teacher}?pattern=cl100k</h2>" in html
    assert "so no row of W spreads over several" in html


def test_a_directory_that_is_no_run_is_refused_and_gets_no_page(tmp_path: Path) -> None:
    (tmp_path / "other" / "notes").mkdir(parents=True)
    with pytest.raises(DataError, match=r"other', which has none of config\.yaml, metrics\.jsonl"):
        write_report(tmp_path / "other")
    with pytest.raises(DataError, match="other"):
        write_report(write_run(tmp_path / "run"), control=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes"]


def test_a_missing_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        write_report(write_run(tmp_path / "run"), control=tmp_path / "nowhere")


def test_a_missing_projection_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProjectionError):
        write_report(write_run(tmp_path / "run"), projection=tmp_path / "nowhere.safetensors")


def test_the_last_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ce"')
    assert [record["step"] for record in read_run(run).metrics] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    (run / "metrics.jsonl").write_text("damaged\n" + (run / "metrics.jsonl").read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl:1"):
        read_run(run)


def test_a_step_that_was_run_again_counts_once_and_the_later_one_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ce": 7.0}\n')
    assert read_run(run).curve("ce") == [(1, 2.0), (2, 7.0), (3, pytest.approx(2 / 3))]


def test_values_that_are_not_finite_are_left_out_of_a_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 2, "ce": NaN}\n{"step": 3, "ce": Infinity}\n{"step": 4, "ce": null}\n{"step": 5, "ce": 1.5}\n'
        )
    assert read_run(run).curve("ce") == [(1, 2.0), (5, 1.5)]


def test_a_damaged_evaluation_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for damaged in ("{", "[]"):
        (run / "evaluation.json").write_text(damaged)
        with pytest.raises(DataError, match=r"evaluation\.json"):
            read_run(run)


def test_better_is_less_loss_and_more_right_answers() -> None:
    control = {"bits_per_byte": 2.0, "exact_answers": 0.5, "tokens": 64}
    by_key = {
        item.measure.key: item for item in compare({"bits_per_byte": 1.5, "exact_answers": 0.4, "tokens": 64}, control)
    }
    assert (by_key["bits_per_byte"].verdict, by_key["bits_per_byte"].change) == ("better", "−25.0 %")
    assert (by_key["exact_answers"].verdict, by_key["exact_answers"].change) == ("worse", "−10.0 points")
    assert (by_key["tokens"].verdict, by_key["tokens"].change) == ("", "")


def test_losses_by_class_stand_beside_each_other(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", evaluation=EVALUATION))
    control = read_run(write_run(tmp_path / "control", evaluation={"loss/word": 4.8, "tokens/word": 8100.0}))
    (chart,) = class_bars([run, control])
    assert [label for label, _ in chart.rows] == ["Two-digit numeral (900)", "Word (8,100)"]
    assert [[bar.text for bar in bars] for _, bars in chart.rows] == [["5.500", "–"], ["2.400", "4.800"]]
    assert chart.rows[1][1][1].length == pytest.approx(4.8 / 5.5)
    assert class_bars([read_run(write_run(tmp_path / "old", evaluation={"bits_per_byte": 1.0}))]) == []
    assert "Two-digit numeral (900)" in write_report(run.path, control=control.path).read_text()


def test_equal_numbers_are_called_the_same() -> None:
    (item,) = compare({"loss_multi_digit": 2.0}, {"loss_multi_digit": 2.0})
    assert (item.verdict, item.change) == ("same", "+0.0 %")


def test_white_space_and_lone_bytes_are_made_visible() -> None:
    assert visible(b" a\n") == "·a⏎"
    assert visible(b"\r\x00\x7f") == "␍␀␡"
    assert visible("\u200d".encode()) == "U+200D"
    assert visible("👩\u200d🚀".encode()) == "👩\u200d🚀"
    assert visible(b"\xe2\x82") == "E2 82"
    assert visible(b"") == "∅"


def test_a_sentence_is_cut_where_both_tokenizers_agree(pair_file: Path) -> None:
    matrix = projection.ProjectionMatrix.load(pair_file)
    student, teacher = tokenizers.load(matrix.student_spec), tokenizers.load(matrix.teacher_spec)
    sentence = align_sentence("he 201 ad", student, teacher)
    sides = [([t.label for t in c.student], [t.label for t in c.teacher], c.kind) for c in sentence.chunks]
    assert sides == [
        (["he"], ["he"], "same"),
        (["·"], ["·"], "same"),
        (["201"], ["2", "0", "1"], "divided"),
        (["·"], ["·"], "same"),
        (["a", "d"], ["ad"], "divided"),
    ]
    assert (sentence.count("same"), sentence.count("divided"), sentence.count("inexact")) == (3, 2, 0)


def test_the_corner_of_w_shows_numerals_of_the_sentence_their_pieces_and_the_pieces_rows(pair_file: Path) -> None:
    matrix = projection.ProjectionMatrix.load(pair_file)
    student, teacher = tokenizers.load(matrix.student_spec), tokenizers.load(matrix.teacher_spec)
    part = corner(matrix, student, teacher, "75 he", size=2)
    assert [row.label for row in part.rows[:2]] in (["20", "75"], ["75", "201"])
    assert [column.label for column in part.columns] == sorted(column.label for column in part.columns)
    assert {column.label for column in part.columns} <= set("20175")
    np.testing.assert_allclose(part.weights.sum(axis=1), 1, atol=1e-6)
    assert [row.label for row in part.rows[2:]] == [column.label for column in part.columns]
    np.testing.assert_array_equal(part.weights[2:], np.eye(len(part.columns)))


def test_a_matrix_of_equal_tokenizers_has_no_corner_to_show(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(rank_file(tmp_path / "same.tiktoken", [b"20"]))
    part = corner(projection.build(tokenizer, tokenizer), tokenizer, tokenizer, "20")
    assert part.rows == ()
