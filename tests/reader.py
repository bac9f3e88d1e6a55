"""A reader of the documents: a folder with the files that their commands name, and a shell that runs these."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import save_run
from tests.distributed import toy
from tests.documents import CHECKOUT, called_by, with_stand_ins
from tests.forked import Forked, nemo_xtoken

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

TOKENIZERS = "student='cl100k_base.tiktoken?pattern=cl100k' teacher='qwen.tiktoken?pattern=qwen'"
BEFORE = f"""
{TOKENIZERS}
nemo-xtoken projection build --student "$student" --teacher "$teacher" --out w.safetensors
nemo-xtoken data prepare text.jsonl --student "$student" --teacher "$teacher" --out data
nemo-xtoken data prepare held_out.jsonl --student "$student" --teacher "$teacher" --out held_out
nemo-xtoken data prepare text.jsonl --student "$teacher" --out teacher_data
nemo-xtoken train teacher.yaml
"""
"""What a reader has done who has a run to train."""


def run_commands(blocks: list[str], folder: Path, stand_ins: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of commands, which bash reads and whose programs run in forks of this process.

    stand_ins   what is put in the place of what is a reader's, see `documents.with_stand_ins`
    """
    script, calls, codes = folder / "commands.sh", folder / "calls", folder / "codes"
    script.write_text(SHELL + with_stand_ins("\n".join(blocks), stand_ins or {}))
    os.mkfifo(calls)
    os.mkfifo(codes)
    with (folder / "log.err").open("ab") as errors:
        shell = subprocess.Popen(["bash", str(script)], cwd=folder, stdout=errors, stderr=errors)
    while True:
        words = calls.read_text().split("\0")[:-1]
        if words[0] == "exit":
            shell.wait()
            calls.unlink()
            codes.unlink()
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


def python(script: str, *arguments: str) -> int:
    """What Python does with a script."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


def a_run() -> RunConfig:
    """A small run by the names of the documents."""
    run = toy.student_run(Path())
    qwen = replace(run.teachers[0], name="qwen", checkpoint="qwen_run", projection="w.safetensors")
    data = replace(run.data, path="data", validation_path="held_out")
    return replace(run, run_dir="RUN_DIR", teachers=(qwen,), data=data)


def make_files(folder: Path) -> None:
    """What documents call the reader's own, all of it small: text, prompts, two tokenizers by the names of published
    ones, and run.yaml with its data, its W and a trained teacher; and this repository's files."""
    pairs = Path(toy.student_spec(folder).partition("?")[0]).rename(folder / "cl100k_base.tiktoken")
    of_bytes = pairs.read_text().splitlines(keepends=True)[:256]
    (folder / "qwen.tiktoken").write_text("".join(of_bytes))
    for name, count in (("text", 400), ("held_out", 60)):
        documents = [{"text": prompt + answer} for prompt, answer in toy.sums(count, seed=count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    questions = [{"prompt": prompt, "answer": answer} for prompt, answer in toy.sums(4, seed=4)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    run = a_run()
    save_run(run, folder / "run.yaml")
    data = replace(run.data, path="teacher_data", validation_path=None)
    save_run(replace(run, run_dir="qwen_run", student=toy.TEACHER, teachers=(), data=data), folder / "teacher.yaml")
    (folder / "examples").symlink_to(CHECKOUT / "examples")
    shutil.copytree(CHECKOUT / "launcher_configs", folder / "launcher_configs")
    code, told = run_commands([BEFORE], folder)
    assert code == 0, told[-3000:]
    for log in folder.glob("log.*"):
        log.unlink()
