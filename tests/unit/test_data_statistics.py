from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken.cli.app import run
from nemo_xtoken.data import PackedDataset, PreparedData, inspect, prepare
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl
from tests.small_tokenizers import rank_file

TEXTS = random_texts(30)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    prepare([write_jsonl(tmp_path / "x.jsonl", TEXTS)], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    return PreparedData.open(tmp_path / "out")


def test_statistics_are_those_of_the_documents(prepared: PreparedData) -> None:
    found = inspect(prepared.path)
    assert (found.manifest, found.fill, found.learnt_share) == (prepared.manifest, None, 1.0)
    lengths = sorted(prepared.student_lengths.tolist())
    assert found.student.total == sum(lengths) == prepared.manifest.student.tokens
    assert found.student.mean == np.mean(lengths)
    assert (found.student.median, found.student.percentile_95, found.student.longest) == (
        lengths[14],
        lengths[27],
        lengths[-1],
    )
    (teacher,) = found.teachers
    assert teacher.total == prepared.teachers[0].lengths.sum()


def test_the_fill_is_that_of_the_packed_samples(prepared: PreparedData) -> None:
    fill = inspect(prepared.path, (60, 50)).fill
    dataset = PackedDataset(prepared, 60, 50, seed=0)
    assert fill is not None
    assert (fill.student, fill.teachers) == dataset.fill
    assert (fill.samples, fill.pieces) == (dataset.epoch_samples(0), len(dataset.pieces))
    assert fill.split_documents == len(set(dataset.pieces.document[~dataset.pieces.ends_document].tolist()))
    assert fill.student == pytest.approx(dataset.pieces.student_lengths.sum() / fill.samples / 60)


def test_inspect_prints_a_table_or_one_object(prepared: PreparedData, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "inspect", str(prepared.path), "--student-length", "60", "--teacher-length", "50"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    for word in ("30 documents", "percentile 95", "fill", "%", "documents split", "chunks dropped"):
        assert word in printed
    assert run([*command, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    content = json.loads(line)
    assert content["fill"]["teacher_sequence_lengths"] == [50]
    assert content["manifest"]["documents"] == 30
    assert run(["data", "inspect", str(prepared.path.parent)]) == 1
    assert "run data prepare" in capsys.readouterr().err


def test_prepare_takes_prompts_workers_and_says_what_it_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "x.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"q": text, "a": "yes"}) + "\n" for text in TEXTS) + '{"q": "[why]"}\n')
    student = f"{rank_file(tmp_path)}?pattern=gpt2"
    command = ["data", "prepare", str(source), "--student", student, "--teacher", "bytes", "--out", str(out)]
    command += ["--prompt-key", "q", "--completion-key", "a", "--workers", "2"]
    assert run(command) == 1
    assert 'line 31 has no text under the key "a" (its keys: q)' in capsys.readouterr().err
    assert run([*command, "--on-error", "skip"]) == 0
    printed = capsys.readouterr()
    assert "1 documents or files skipped" in printed.out
    assert "skipped: " in printed.err
    assert "line 31 has no text" in printed.err
    prepared = PreparedData.open(out)
    assert 0 < inspect(out).learnt_share < 0.5
    assert prepared.loss_bytes.max() == 3
    assert run([*command, "--on-error", "later"]) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["align", "--sentence", ""],
        ["align", "--text-key", "body"],
        ["align", "--stats", ""],
        ["data", "prepare", "", "--out", "out"],
        ["data", "prepare", "x.txt", "--out", "out", "--text-key", "a", "--completion-key", "b"],
        ["data", "prepare", "hf:name", "--out", "out"],
    ],
)
def test_wrong_use_is_told_from_failed_work(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("text")
    assert run([*wrong, "--student", "bytes", "--teacher", "bytes"]) == 2
    assert "expected" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
