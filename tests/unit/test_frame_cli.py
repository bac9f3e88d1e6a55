from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import nemo_xtoken
from nemo_xtoken.cli.app import app, run
from nemo_xtoken.errors import ConfigError, DataError, SpecError, TokenizerError, WrongUseError, XTokenError

SENTENCE = "add 12 to 2424"
PROGRAM = [sys.executable, "-c", "from nemo_xtoken.cli import main; main()"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with two-digit numerals, as a spec."""
    tokens = [bytes([value]) for value in range(256)] + [f"{value:02}".encode() for value in range(100)]
    path = tmp_path_factory.mktemp("tokenizer") / "pairs.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens)))
    return f"{path}?pattern=gpt2"


@pytest.fixture(scope="module")
def projection(student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projection") / "w.safetensors"
    assert run(["projection", "build", "--student", student, "--teacher", "bytes", "--out", str(path)]) == 0
    return path


def lines_of(captured: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    output = captured.readouterr()
    return output.out.splitlines(), output.err.splitlines()


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"nemo-xtoken {nemo_xtoken.__version__}\n"
    help_page = CliRunner().invoke(app, ["--help"]).stdout
    for command in ("align", "projection", "data", "train", "evaluate", "export", "report", "doctor"):
        assert command in help_page


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group of commands."""
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


@pytest.mark.parametrize("command", commands(get_command(app)), ids=" ".join)
def test_every_command_has_a_page_of_help(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.exception


def test_brackets_of_a_help_page_are_not_taken_for_markup() -> None:
    page = CliRunner().invoke(app, ["data", "prepare", "--help"]).stdout
    assert "hf:OWNER/NAME[@REVISION][/FOLDER]" in "".join(page.replace("│", "").split())


def test_help_starts_without_torch() -> None:
    program = (
        "import sys; from nemo_xtoken.cli import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "--help"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, ""),
        (["wander"], 2, "No such command 'wander'"),
        (["data"], 2, "Missing command. Try nemo-xtoken data --help"),
        (["align"], 2, "Missing option '--student'. Try nemo-xtoken align --help"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--nonsense"], 2, "No such option"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--text", "-", "--sentence", "a"], 2, "got both"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--text", "NONE"], 1, "NONE: no such file"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--stats", "NONE"], 1, "NONE, found nothing there"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--stats", "NONE", "--html", "x"], 2, "--stats alone"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--aligner", "dp", "--html", "x"], 2, "exact with"),
        (["align", "--student", "bytes", "--teacher", "bytes", "--sentence", ""], 2, "--sentence, got none"),
        (["align", "--student", "bytes", "--teacher", "bytes?pattern=qwen"], 2, "?pattern= is for tiktoken rank files"),
        (["align", "--student", "bytes", "--teacher", "bytes?pattern=qwn"], 2, "did you mean qwen"),
        (["align", "--student", "NONE.tiktoken?pattern=gpt2", "--teacher", "bytes"], 2, "NONE.tiktoken"),
        (["projection", "audit", "NONE"], 1, "NONE"),
        (["projection", "build", "--student", "bytes", "--teacher", "bytes", "--out", "x", "--top-k", "0"], 2, "top_k"),
        (
            ["projection", "build", "--student", "bytes", "--teacher", "bytes", "--out", "x", "--top-k", "a"],
            2,
            "Invalid value for '--top-k'",
        ),
        (["data", "prepare", "NONE", "--student", "bytes", "--out", "x"], 1, "NONE"),
        (["train", "NONE.yaml"], 2, "NONE.yaml: no such file"),
        (["report", "NONE"], 1, "NONE"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    out, err = lines_of(capsys)
    if message:
        assert out == []
        assert len(err) == 1
        assert err[0].startswith("error: ")
        assert message in err[0]


class WrongSourceError(DataError, WrongUseError):
    """As any room can have one."""


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ConfigError("lr must be\npositive"), 2, "error: lr must be positive"),
        (SpecError("no such tokenizer"), 2, "error: no such tokenizer"),
        (TokenizerError("a damaged tokenizer"), 1, "error: a damaged tokenizer"),
        (WrongSourceError("hf: names nothing"), 2, "error: hf: names nothing"),
        (DataError("text [bold]is[/bold] empty"), 1, "error: text [bold]is[/bold] empty"),
        (XTokenError("x" * 300), 1, "error: " + "x" * 300),
        (PermissionError(13, "Permission denied", "out/w"), 1, "error: out/w: Permission denied"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_errors_of_the_rooms_become_exit_codes(
    raised: BaseException,
    code: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("nemo_xtoken.report.write_page_of", fail)
    assert run(["report", "somewhere"]) == code
    _, err = lines_of(capsys)
    assert err == ([] if line is None else [line])


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nemo_xtoken.report.write_page_of", fail)
    with pytest.raises(ZeroDivisionError):
        run(["report", "somewhere"])


def test_a_reader_who_leaves_early_ends_the_command_quietly(student: str) -> None:
    shell = [*PROGRAM, "align", "--student", student, "--teacher", "bytes", "--text", "-", "--json"]
    process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"words and 12 numbers " * 20_000)
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() != 0


def test_the_program_ends_with_the_exit_codes(student: str) -> None:
    cases = {
        0: ["align", "--student", student, "--teacher", "bytes", "--sentence", SENTENCE],
        1: ["align", "--student", student, "--teacher", "bytes", "--text", "NONE"],
        2: ["align", "--student", "NONE.tiktoken?pattern=gpt2", "--teacher", "bytes"],
    }
    for code, arguments in cases.items():
        result = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    arguments: list[str | bytes] = ["projection", "build", "--student", "bytes", "--teacher", "bytes", "--out"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [*PROGRAM, *arguments, b"\xff.safetensors"]
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert (result.returncode, result.stdout.partition(b":")[0]) == (0, rb"\udcff.safetensors"), result.stderr
    assert (tmp_path / os.fsdecode(b"\xff.safetensors")).is_file()


def test_align_shows_both_rows_chunk_by_chunk(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["align", "--student", student, "--teacher", "bytes", "--sentence", SENTENCE]) == 0
    out, _ = lines_of(capsys)
    assert out[0].split() == ["student", "a", "d", "d", "·", "12", "·", "t", "o", "·", "24", "24"]
    assert out[1].split() == ["teacher", "a", "d", "d", "·", "1│2", "·", "t", "o", "·", "2│4", "2│4"]
    assert out[2].split() == ["1:2", "1:2", "1:2"]
    assert out[0].index("12") == out[1].index("1│2")
    assert out[3].startswith(
        "11 chunks of 11 student and 14 teacher tokens: 8 one to one, 3 divided, 0 inexact; 0 gaps"
    )


def test_align_json_is_one_object_of_spans(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes("é 12\r\n".encode())
    assert run(["align", "--student", student, "--teacher", "bytes", "--text", str(text), "--json"]) == 0
    out, _ = lines_of(capsys)
    assert len(out) == 1
    found = json.loads(out[0])
    assert found["student"]["ends"][-1] == found["teacher"]["ends"][-1] == 7
    assert found["teacher"]["starts"] == list(range(7))
    assert all(found["chunks"]["exact"])


def test_align_counts_over_a_file(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"body": SENTENCE}) + "\n" + json.dumps({"body": "no numeral"}) + "\n")
    command = ["align", "--student", student, "--teacher", "bytes", "--stats", str(text), "--text-key", "body"]
    assert run([*command, "--json"]) == 0
    out, _ = lines_of(capsys)
    assert len(out) == 1
    found = json.loads(out[0])
    assert (found["documents"], found["one_to_many"], found["chunks"]) == (2, 3, 11 + 10 + 2)
    assert found["student_tokens"] - found["student_seen_tokens"] == 2
    assert run(command) == 0
    table = "\n".join(lines_of(capsys)[0])
    assert "2 documents" in table
    assert "student tokens in the loss" in table


def test_align_writes_its_rows_as_a_page(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deep" / "page.html"
    command = ["align", "--student", student, "--teacher", "bytes", "--sentence", "<b>12</b>", "--html", str(page)]
    assert run(command) == 0
    html = page.read_text(encoding="utf-8")
    assert '<li class="chunk divided">' in html
    assert ">12</span>" in html
    assert "<b>1" not in html
    assert lines_of(capsys)[0][0].startswith("student")


def test_align_can_use_the_aligner_of_the_paper(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["align", "--student", student, "--teacher", "bytes", "--sentence", SENTENCE]
    assert run([*command, "--aligner", "dp"]) == 0
    assert lines_of(capsys)[0][3].startswith("11 chunks")


def test_align_refuses_text_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"ab\xff")
    assert run(["align", "--student", "bytes", "--teacher", "bytes", "--text", str(text)]) == 1
    assert "expected UTF-8 text, got byte 0xff at 2" in lines_of(capsys)[1][0]


def test_projection_build_counts_its_rows(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w.safetensors"
    assert run(["projection", "build", "--student", student, "--teacher", "bytes", "--out", str(out)]) == 0
    assert out.is_file()
    assert "257 exact, 100 projected, 0 empty" in lines_of(capsys)[0][0]


def test_projection_audit_recommends_a_loss(projection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["projection", "audit", str(projection)]) == 0
    out, _ = lines_of(capsys)
    (row,) = (line for line in out if line.startswith("│ two-digit numeral"))
    assert "100" in row
    assert "0.0 %" in row
    assert any("P-KL" in line for line in out)


def test_projection_audit_json_is_one_object(projection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["projection", "audit", str(projection), "--json"]) == 0
    out, _ = lines_of(capsys)
    assert len(out) == 1
    assert json.loads(out[0])["recommended"] == "p_kl"


def test_a_projection_of_another_pair_is_refused(projection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["projection", "audit", str(projection), "--student", "bytes"]) == 1
    assert "student" in lines_of(capsys)[1][0]


def test_data_prepare_writes_and_then_reuses(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "data"
    text.write_text(SENTENCE)
    command = ["data", "prepare", str(text), "--student", student, "--teacher", "bytes", "--out", str(out)]
    assert run(command) == 0
    assert "1 documents, 14 bytes" in lines_of(capsys)[0][-1]
    assert run(command) == 0
    assert "already prepared" in lines_of(capsys)[0][-1]


def test_empty_text_is_refused(student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("")
    command = [
        "data",
        "prepare",
        str(text),
        "--student",
        student,
        "--teacher",
        "bytes",
        "--out",
        str(tmp_path / "data"),
    ]
    assert run(command) == 1
    assert lines_of(capsys)[1][-1].startswith("error: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "expected prompts, got an empty file"),
        ('{"prompt": "1+1=", "answer": "2"}\nwords\n', "prompts.jsonl:2: expected"),
        ('{"prompt": "1+1="}\n', "prompts.jsonl:1: expected"),
        ('["1+1=", "2"]\n', "prompts.jsonl:1: expected"),
    ],
)
def test_wrong_prompts_are_told_by_line(
    content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content)
    assert run(["evaluate", str(tmp_path), "--data", str(tmp_path), "--prompts", str(prompts)]) == 1
    assert told in lines_of(capsys)[1][0]


def test_evaluate_leaves_its_numbers_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(run_dir: Path, data: Path, questions: list[tuple[str, str]]) -> dict[str, float]:
        print("a library talks")
        return {
            "bits_per_byte": 1.25,
            "loss_multi_digit": float("nan"),
            "mass_multi_digit": 0.5,
            "tokens": 6400.0,
            "loss/two_digit_numeral": 5.5,
            "tokens/two_digit_numeral": 1234.0,
            "questions": float(len(questions)),
        }

    monkeypatch.setattr("nemo_xtoken.integrations.megatron.evaluate", measure)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "answer": 2}\n')
    expected = measure(tmp_path, tmp_path, [("1+1=", "2")]) | {"loss_multi_digit": None}
    capsys.readouterr()
    command = ["evaluate", str(tmp_path), "--data", "held", "--prompts", str(prompts)]
    assert run([*command, "--json"]) == 0
    out, _ = lines_of(capsys)
    assert [json.loads(line) for line in out] == [expected]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == expected
    assert run(command) == 0
    rows = [re.split(r" {2,}", line.strip()) for line in lines_of(capsys)[0]]
    assert ["Loss per byte", "1.250", "bits per byte"] in rows
    assert ["Probability of any numeral where one of several digits follows", "50.0 %", "mean"] in rows
    assert ["two-digit numeral (1,234)", "5.500", "nats per token"] in rows
    assert not any("Loss on numerals" in row[0] for row in rows)


def test_export_says_what_it_can_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Megatron-Bridge, too; the rest is in tests/bridge."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setitem(sys.modules, "megatron.bridge", None)
    nemo, checkpoint, out = tmp_path / "nemo", tmp_path / "checkpoint", tmp_path / "out"
    for folder in (nemo / "context", nemo / "weights", checkpoint):
        folder.mkdir(parents=True)
    for arguments, code, message in (
        ([checkpoint, "source", checkpoint], 2, "is there already; name a directory that is not"),
        ([checkpoint, "source", out, "--device", "tpu"], 2, "--device: expected one of cuda, cpu, got tpu"),
        ([tmp_path / "none", "source", out], 1, "no such directory; expected a checkpoint of Megatron-Bridge"),
        ([nemo, "source", out], 1, "is a checkpoint of NeMo, not of Megatron-Bridge; export it with"),
        ([checkpoint, "source", out], 1, "pip install 'nemo-xtoken[bridge]'"),
    ):
        assert run(["export", *map(str, arguments)]) == code
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()
