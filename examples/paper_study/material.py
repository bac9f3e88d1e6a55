"""What the runs need: text, tokenizers cut to it, W, prepared data and trained teachers. What is there is kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from examples.paper_study.plan import (
    WORK,
    Loss,
    Study,
    Teacher,
    pretraining_config,
    projection_file,
    student_data,
    teacher_config,
)
from examples.paper_study.text import make_text, teachers_text
from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import save_run

TEXT = WORK / "text"
PARTS = WORK / "parts_of_text"
TOKENIZERS = WORK / "tokenizers"
RANK_FILES = {"cl100k": "cl100k_base.tiktoken", "o200k": "o200k_base.tiktoken", "qwen": "qwen.tiktoken"}
TRAINING = ("teacher_train", "student_train")
PROMPTS = TEXT / "prompts.jsonl"


def make_material(study: Study, losses: Iterable[Loss], seeds: int) -> None:
    """Everything that the runs of these losses with the first so many seeds read."""
    losses = list(losses)
    make_text(TEXT)
    _cut_tokenizers(study)
    for student in sorted({loss.student for loss in losses}):
        for name in ("student_train", "validation", "heldout"):
            others = _others(study) if name == "student_train" else ()
            _prepare(TEXT / f"{name}.jsonl", student, student_data(study, student, name), others)
    for name in sorted({name for loss in losses for name in loss.teachers}):
        teacher = study.teachers[name]
        _train(f"the teacher {name}", teacher.tokenizer, teacher_config(teacher), teacher.text)
    for loss in losses:
        for name in loss.teachers:
            _build_projection(study, study.teachers[name], loss)
    for student in sorted({loss.student for loss in losses if loss.pretrained}):
        for seed in (study.search_seed, *study.seeds[:seeds]):
            _train(f"the student of {student} and seed {seed}", student, pretraining_config(study, student, seed))


def text_hash() -> str:
    """SHA-256 of all the text, which the same code makes the same everywhere."""
    files = (path.read_bytes() for path in sorted(TEXT.glob("*.jsonl")))
    return hashlib.sha256(b"".join(files)).hexdigest()


def spec(tokenizer: str) -> str:
    """The tokenizer cut to the text, as commands name it."""
    return f"{TOKENIZERS / f'{tokenizer}.tiktoken'}?pattern={tokenizer}"


def train(config: RunConfig, log: Path) -> None:
    """Trains a run; it goes on where it was. Raises CalledProcessError, and the log says why."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_name(f"{log.name}.yaml")
    save_run(config, file)
    with log.open("a", encoding="utf-8") as output:
        subprocess.run([_command(), "train", str(file)], stdout=output, stderr=output, check=True)


def _others(study: Study) -> list[str]:
    return [f"{name}={spec(name)}" for name in study.tokenizers]


def _cut_tokenizers(study: Study) -> None:
    whole = TOKENIZERS / "whole"
    missing = [name for name in study.tokenizers if not (TOKENIZERS / f"{name}.tiktoken").is_file()]
    if not missing:
        return
    _run([sys.executable, "examples/fetch_tokenizers.py", str(whole), *sorted(RANK_FILES[name] for name in missing)])
    for name in missing:
        ranks, out = f"{whole / RANK_FILES[name]}?pattern={name}", TOKENIZERS / f"{name}.tiktoken"
        texts = [str(TEXT / f"{part}.jsonl") for part in TRAINING]
        _run([sys.executable, "examples/cut_vocabulary.py", ranks, *texts, "--out", str(out)])


def _prepare(text: Path, student: str, out: Path, teachers: Iterable[str]) -> None:
    if not out.is_dir():
        named = [argument for teacher in teachers for argument in ("--teacher", teacher)]
        files = [str(text), "--student", spec(student), *named, "--out", str(out)]
        _run([_command(), "data", "prepare", *files])


def _train(name: str, tokenizer: str, config: RunConfig, part: str = "all") -> None:
    """Train a model on a part of the teachers' text, unless it has been."""
    folder = Path(config.run_dir)
    if (done := folder.with_name(f"{folder.name}.done")).exists():
        return
    _prepare(teachers_text(TEXT, part, PARTS), tokenizer, Path(config.data.path), ())
    print(f"training {name}, {config.train.steps} steps", flush=True)
    train(config, folder.with_name(f"{folder.name}.log"))
    done.touch()


def _build_projection(study: Study, teacher: Teacher, loss: Loss) -> None:
    out = projection_file(study, loss.student, teacher, loss.projection)
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        options = [f"--{key.replace('_', '-')}={value}" for key, value in loss.projection.items()]
        pair = ["--student", spec(loss.student), "--teacher", spec(teacher.tokenizer)]
        _run([_command(), "projection", "build", *pair, *options, "--out", str(out)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _command() -> str:
    return str(Path(sys.executable).with_name("nemo-xtoken"))
