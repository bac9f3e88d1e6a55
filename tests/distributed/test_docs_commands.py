"""The commands of the documents, run one after another as a reader would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.integrations.megatron import caching, evaluation, train_loop  # noqa: F401  imported once for all commands
from nemo_xtoken.report.held_out import compare
from tests.documents import CHECKOUT, bash_blocks
from tests.reader import TOKENIZERS, make_files, run_commands

READ_IN_THIS_ORDER = ("tutorial.md", "choosing.md")
OF_OTHER_SUITES = {"bridge.md", "nemo.md", "slurm.md"}


def measured(run_dir: Path) -> dict[str, Any]:
    """What `nemo-xtoken evaluate` has measured."""
    return json.loads((run_dir / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_documents_run(real_tokenizers: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    tokenizers = tmp_path / "tutorial" / "tokenizers"
    tokenizers.mkdir(parents=True)
    for name in ("qwen", "cl100k_base"):
        shutil.copy(real_tokenizers / f"{name}.tiktoken", tokenizers)
    blocks = [block for name in READ_IN_THIS_ORDER for block in bash_blocks(CHECKOUT / "docs" / name)]
    code, told = run_commands(blocks, tmp_path)
    assert code == 0, told[-3000:]
    assert "P-KL, because a loss on common tokens would suppress" in told
    assert "ended with exit code 85" in told
    assert "resuming tutorial/distilled after step" in told
    pages = ("w.html", "data/student/report.html", "distilled/report.html", "comparison.html", "losses.html")
    assert [page for page in pages if not (tmp_path / "tutorial" / page).is_file()] == []
    distilled, control, h_kl = (measured(tmp_path / "tutorial" / name) for name in ("distilled", "control", "h_kl"))
    assert distilled["bits_per_byte"] < min(control["bits_per_byte"], h_kl["bits_per_byte"])
    assert h_kl["mass_multi_digit"] < distilled["mass_multi_digit"] / 2
    for page, runs in {"comparison.html": (distilled, control), "losses.html": (distilled, h_kl)}.items():
        text = (tmp_path / "tutorial" / page).read_text()
        assert [number.run for run in runs for number in compare(run, None) if number.run not in text] == []
    assert (tmp_path / "tutorial" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["nemo-xtoken wander", "python no_such_script.py", "false"])
def test_a_command_that_fails_would_be_seen(command: str, tmp_path: Path) -> None:
    code, told = run_commands([command, "echo went on"], tmp_path)
    assert code > 0
    assert "went on" not in told


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What documents call the reader's own."""
    folder = tmp_path_factory.mktemp("reader")
    make_files(folder)
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    """That, for one test."""
    return shutil.copytree(files, tmp_path / "reader", symlinks=True)


OTHER_RUN = "nemo-xtoken train run.yaml 'teachers=[]' run_dir=OTHER_RUN_DIR\nrm -r w.safetensors data"


def test_the_commands_of_the_readme_run(folder: Path) -> None:
    """From two tokenizers to the reports of the run and of another one, without a teacher."""
    (block,) = (block for block in bash_blocks(CHECKOUT / "README.md") if "nemo-xtoken" in block)
    code, told = run_commands([OTHER_RUN, block], folder)
    assert code == 0, told[-3000:]
    assert "P-KL, because a loss on common tokens would suppress" in told
    assert "of the prompts" in told
    distilled, other = ((folder / name / "metrics.jsonl").read_text() for name in ("RUN_DIR", "OTHER_RUN_DIR"))
    assert "kd" in distilled
    assert "kd" not in other
    assert [page for page in ("RUN_DIR/report.html", "comparison.html") if not (folder / page).is_file()] == []


ANOTHER_LAYOUT = "nemo-xtoken train run.yaml parallel."
OWN_LOOP = {ANOTHER_LAYOUT: f"mv RUN_DIR first\n{ANOTHER_LAYOUT}", "train.steps=2000": "train.steps=8"}


def test_the_commands_of_our_own_loop_run(folder: Path) -> None:
    """The second, for eight ranks, begins anew; the third, for one, goes on with what that has done."""
    code, told = run_commands(bash_blocks(CHECKOUT / "docs" / "megatron.md"), folder, OWN_LOOP)
    assert code == 0, told[-3000:]
    assert "resuming RUN_DIR after step 6" in told
    assert "take colocated: " in told
    one, eight = (losses(folder / name) for name in ("first", "RUN_DIR"))
    assert (len(one), len(eight)) == (6, 8)
    assert eight[:6] == pytest.approx(one, rel=1e-4)


def test_the_commands_of_the_teachers_run(folder: Path) -> None:
    blocks = [f"rm -r data\n{TOKENIZERS}", *bash_blocks(CHECKOUT / "docs" / "teachers.md")]
    code, told = run_commands(blocks, folder, {"DATA.teachers/NAME": "data.teachers/qwen"})
    assert code == 0, told[-3000:]
    assert "2,950 own tokens" in told
    assert len(losses(folder / "RUN_DIR")) == 6
    assert "data.teachers/qwen: 1 shards are as they were written" in told


def losses(run_dir: Path) -> list[float]:
    """The loss of each step of a run."""
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_no_command_of_the_documents_is_left_out() -> None:
    with_commands = {path.name for path in (CHECKOUT / "docs").glob("*.md") if bash_blocks(path)}
    assert with_commands == {*READ_IN_THIS_ORDER, "megatron.md", "teachers.md", *OF_OTHER_SUITES}
