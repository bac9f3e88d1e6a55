"""The commands about W, from the command line."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import torch

from nemo_xtoken.cli.app import run
from nemo_xtoken.projection import ProjectionMatrix
from tests.small_tokenizers import rank_file

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    merges = [b"20", b"201", b"\xe2\x82", " é".encode(), b"1999"]
    return f"{rank_file(tmp_path_factory.mktemp('tokenizer'), merges=merges)}?pattern=gpt2"


@pytest.fixture(scope="module")
def projection(student: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("projection") / "w.safetensors"
    assert run(["projection", "build", "--student", student, "--teacher", "bytes", "--out", str(path)]) == 0
    return str(path)


def told(captured: Captured) -> list[str]:
    return captured.readouterr().out.splitlines()


def error_of(captured: Captured) -> str:
    (line,) = captured.readouterr().err.splitlines()
    return line


def test_build_explains_the_empty_rows(tmp_path: Path, capsys: Captured, student: str) -> None:
    out = str(tmp_path / "w.safetensors")
    assert run(["projection", "build", "--student", "bytes", "--teacher", student, "--out", out, "--reverse-pass"]) == 0
    lines = told(capsys)
    assert "257 exact, 0 projected, 2 empty" in lines[0]
    assert lines[1].startswith("2 rows are empty: special tokens without a counterpart")
    assert ProjectionMatrix.load(out).reverse_pass


def test_a_folder_in_the_place_of_the_file_is_wrong_use(tmp_path: Path, capsys: Captured) -> None:
    command = ["projection", "build", "--student", "bytes", "--teacher", "bytes", "--out"]
    assert run([*command, str(tmp_path)]) == 2
    assert error_of(capsys).startswith(f"error: {tmp_path}: expected the name of a file to write, got a folder")
    assert list(tmp_path.iterdir()) == []


def test_show_lists_the_pieces_of_student_tokens(projection: str, capsys: Captured) -> None:
    assert run(["projection", "show", projection, "201", "0xE2 0x82", "eos", " é"]) == 0
    text = "\n".join(told(capsys))
    assert re.search(r"│ 201 #257 +│ 0.9009 │ 2 #53 ", text)
    assert re.search(r"│ +│ 0.0901 │ 0 #51 ", text)
    assert re.search(r"│ 0xE2 0x82 #258 +│ 0.9091 │ 0xE2 #229 ", text)
    assert re.search(r"│ ·é #259 0x20 0xC3 0xA9 +│ 0.9009 │ · #35 ", text)
    assert re.search(r"│ eos #261 <\|endoftext\|> +│ +1 │ eos #1 </s> ", text)


def test_show_lists_who_reaches_a_teacher_token(projection: str, capsys: Captured) -> None:
    assert run(["projection", "show", projection, "--teacher", "2", "--limit", "2"]) == 0
    text = "\n".join(told(capsys))
    assert re.search(r"│ 2 #53 +│ +1 │ 2 #50", text)
    assert re.search(r"│ +│ 0.9091 │ 20 #256", text)
    assert "and 1 more" in text


def test_show_json_is_one_object_of_both_directions(projection: str, capsys: Captured) -> None:
    assert run(["projection", "show", projection, "201", "#258", "--json"]) == 0
    (line,) = told(capsys)
    found = json.loads(line)
    assert found["side"] == "student"
    first, second = found["tokens"]
    assert (first["id"], first["text"], first["bytes"], first["kind"]) == (257, "201", "32 30 31", "projected")
    assert [entry["id"] for entry in first["entries"]] == [53, 51, 52]
    assert sum(entry["weight"] for entry in first["entries"]) == pytest.approx(1, abs=1e-6)
    assert (second["text"], second["bytes"], second["special_name"]) == (None, "e2 82", None)
    assert run(["projection", "show", projection, "--teacher", "#53", "--json"]) == 0
    found = json.loads(told(capsys)[0])
    assert [entry["text"] for entry in found["tokens"][0]["entries"]] == ["2", "20", "201"]


def test_show_refuses_what_is_no_token_and_another_pair(projection: str, capsys: Captured) -> None:
    assert run(["projection", "show", projection, "#99999"]) == 1
    assert "has no token '#99999'; expected text, bytes" in error_of(capsys)
    assert run(["projection", "show", projection, "\udcff"]) == 1
    assert r"has no token '\udcff'" in error_of(capsys)
    assert run(["projection", "show", projection, "a", "--student-tokenizer", "bytes"]) == 1
    assert "projection of another tokenizer pair" in error_of(capsys)
    assert run(["projection", "show", projection]) == 2


def test_audit_counts_the_classes_that_are_asked_for(projection: str, capsys: Captured) -> None:
    assert run(["projection", "audit", projection, "--class", r"year=(19|20)\d\d", "--class", "a=b=c"]) == 0
    lines = told(capsys)
    (row,) = (line for line in lines if line.startswith("│ year"))
    assert row.split()[3:9] == ["1", "│", "0", "│", "0.0", "%"]
    assert any(line.startswith("│ a ") for line in lines)
    assert run(["projection", "audit", projection, "--class", "year=1999", "--json"]) == 0
    assert json.loads(told(capsys)[0])["user_classes"]["year"] == {
        "total": 1,
        "common": 0,
        "uncommon_examples": ["1999"],
    }


def test_what_the_user_types_is_not_read_as_markup(projection: str, capsys: Captured) -> None:
    assert run(["projection", "audit", projection, "--class", "[bold]red[/x] :smile:=.*", "--class", "[red]=a"]) == 0
    text = "\n".join(told(capsys))
    assert "│ [bold]red[/x] :smile: " in text
    assert "│ [red] " in text


def test_brackets_of_tokens_are_shown_as_they_are(projection: str, capsys: Captured) -> None:
    assert run(["projection", "audit", projection, "--class", r"all=\[|201"]) == 0
    assert any(line.startswith("│ all ") for line in told(capsys))
    assert run(["projection", "show", projection, "["]) == 0
    assert re.search(r"│ \[ #91 +│ +1 │ \[ #94", "\n".join(told(capsys)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["year"], "NAME=REGEX"),
        (["=a"], "NAME=REGEX"),
        (["\udcff=a"], "NAME=REGEX"),
        (["a=("], "not a regular"),
        (["a=1", "b=1", "a=2"], "a name of its own, got a twice"),
    ],
)
def test_a_class_that_is_none_is_wrong_use(texts: list[str], message: str, projection: str, capsys: Captured) -> None:
    assert run(["projection", "audit", projection, *(f"--class={text}" for text in texts)]) == 2
    assert message in error_of(capsys)


def test_audit_writes_a_page(projection: str, tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "pages" / "audit.html"
    assert run(["projection", "audit", projection, "--html", str(page)]) == 0
    assert told(capsys)
    assert "Recommended loss: P-KL" in page.read_text()


def full_disk(self: Path, content: bytes) -> int:
    """In the place of `Path.write_bytes`."""
    with self.open("wb") as stream:
        stream.write(content[:100])
    raise OSError(errno.ENOSPC, "No space left on device", str(self))


def test_a_page_that_cannot_be_written_leaves_nothing(
    projection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert run(["projection", "audit", projection, "--html", str(tmp_path)]) == 2
    assert error_of(capsys).startswith(f"error: {tmp_path}: expected the name of a file to write, got a folder")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert run(["projection", "audit", projection, "--html", str(tmp_path / "x.html")]) == 1
    assert error_of(capsys) == f"error: {tmp_path / 'x.html'}: No space left on device"
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob("*.unfinished"))


def test_a_picture_of_an_unknown_format_is_wrong_use_before_anything_is_written(
    projection: str, tmp_path: Path, capsys: Captured
) -> None:
    page, picture = str(tmp_path / "x.html"), str(tmp_path / "a.xyz")
    assert run(["projection", "audit", projection, "--html", page, "--png", picture]) == 2
    assert f"ending in .png, .svg or .pdf, got {picture}" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_is_gone_is_the_file_s_fault_and_a_wrong_spec_is_wrong_use(
    tmp_path: Path, capsys: Captured
) -> None:
    tokenizer, w = rank_file(tmp_path), str(tmp_path / "w.safetensors")
    spec = f"{tokenizer}?pattern=gpt2"
    assert run(["projection", "build", "--student", spec, "--teacher", "bytes", "--out", w]) == 0
    moved = f"{tokenizer.rename(tmp_path / 'moved.tiktoken')}?pattern=gpt2"
    capsys.readouterr()
    for command in (["show", w, "a"], ["audit", w]):
        assert run(["projection", *command]) == 1
        assert "the student tokenizer that this projection was built with is gone" in error_of(capsys)
    assert run(["projection", "audit", w, "--student", "none.json"]) == 2
    assert run(["projection", "show", w, "a", "--student-tokenizer", moved]) == 0


def test_convert_goes_to_nemo_rl_and_back(projection: str, student: str, tmp_path: Path, capsys: Captured) -> None:
    there, back = str(tmp_path / "w.pt"), str(tmp_path / "back.safetensors")
    assert run(["projection", "convert", projection, there]) == 0
    assert set(torch.load(there, weights_only=True)) >= {"indices", "likelihoods"}
    assert run(["projection", "convert", there, back, "--student", student, "--teacher", "bytes"]) == 0
    lines = told(capsys)
    assert lines[0].partition(": ")[2] == lines[1].partition(": ")[2]
    matrix, again = ProjectionMatrix.load(projection), ProjectionMatrix.load(back)
    assert (matrix.indices == again.indices[:, :4]).all()
    again.check_pair(matrix.student_fingerprint, matrix.teacher_fingerprint)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{w}", "other.safetensors"], 2, "expected one .pt file and one of another kind"),
        (["a.pt", "b.pt"], 2, "expected one .pt file"),
        (["a.pt", "b.safetensors"], 2, "does not say which tokenizers"),
        (["a.pt", "b.safetensors", "--student", "bytes", "--teacher", "bytes"], 1, "no projection file at a.pt"),
        (["{w}", "b.pt", "--student", "bytes"], 1, "projection of another tokenizer pair"),
    ],
)
def test_convert_refuses_what_it_cannot_convert(
    arguments: list[str],
    code: int,
    message: str,
    projection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["projection", "convert", *(argument.format(w=projection) for argument in arguments)]) == code
    assert message in error_of(capsys)
    assert list(tmp_path.iterdir()) == []
