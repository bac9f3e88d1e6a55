"""The commands of the documents, run one after another as a reader would."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.integrations.megatron import caching, evaluation, train_loop  # noqa: F401  imported once for all commands
from nemo_xtoken.report.held_out import compare
from tests.documents import CHECKOUT, bash_blocks, called_by
from tests.forked import Forked, nemo_xtoken

READ_IN_THIS_ORDER = ("tutorial.md", "choosing.md")
OF_THE_READERS_OWN = {"bridge.md", "megatron.md", "nemo.md", "slurm.md", "teachers.md"}
"""Documents whose commands stand for the reader's files: like those of the README they are parsed, not run."""

SHELL = """
set -euo pipefail
call() {
  printf '%s\\0' "$@" >calls
  local code
  read -r code <codes
  return "$code"
}
nemo-xtoken() { call nemo-xtoken "$@"; }
python() { call python "$@"; }
timeout() { call timeout "$@"; }
trap 'printf "exit\\0%s\\0" "$?" >calls' EXIT
"""
"""What a reader's shell has, but that programs are called through two pipes."""


def python(script: str, *arguments: str) -> int:
    """What Python does with a script."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


def run_commands(blocks: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of commands, which bash reads and whose programs run in forks of this process."""
    script, calls, codes = folder / "commands.sh", folder / "calls", folder / "codes"
    script.write_text(SHELL + "\n".join(blocks))
    os.mkfifo(calls)
    os.mkfifo(codes)
    with (folder / "log.err").open("ab") as errors:
        shell = subprocess.Popen(["bash", str(script)], cwd=folder, stdout=errors, stderr=errors)
    while True:
        words = calls.read_text().split("\0")[:-1]
        if words[0] == "exit":
            shell.wait()
            return int(words[1]), "".join(path.read_text() for path in sorted(folder.glob("log.*"), reverse=True))
        codes.write_text(f"{exit_code(words, folder)}\n")


def exit_code(words: list[str], folder: Path) -> int:
    """What a program in a fork ends with. The signal of `timeout` comes after three steps, however fast they are."""
    name, *arguments = called_by(words)
    program = {"nemo-xtoken": nemo_xtoken, "python": python}[name]
    process = Forked(program, *arguments, log=folder / "log", folder=folder)
    told_before = len(process.texts()[0])
    if words[0] == "timeout":
        while "step 3/" not in process.texts()[0][told_before:]:
            assert process.poll() is None, process.texts()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    return process.wait(600)


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


def test_no_command_of_the_documents_is_left_out() -> None:
    with_commands = {path.name for path in (CHECKOUT / "docs").glob("*.md") if bash_blocks(path)}
    assert with_commands == {*READ_IN_THIS_ORDER, *OF_THE_READERS_OWN}
