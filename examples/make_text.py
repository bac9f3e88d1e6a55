"""Make the quickstart's text: word problems with worked answers, from reasoning-gym's `gsm_symbolic` (Apache-2.0).

    python examples/make_text.py OUT_DIR

writes JSON lines, the same on every machine:

    teacher_train.jsonl   {"text": ...}  6,000 problems
    student_train.jsonl   {"text": ...}    300 other problems: the teacher judges text that it has not learnt by heart
    heldout.jsonl         {"text": ...}    200 problems of another seed, none of which occurs in training
    prompts.jsonl         {"prompt": ..., "answer": ...}  64 of the held-out texts, cut before their final number

A text is the problem, its worked answer, and the result after four hash signs: "... 160 + 128 = 288\\n#### 288".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import reasoning_gym

TRAIN_SEED = 1
HELDOUT_SEED = 1_000_000
INSTRUCTION = " Give the result as your final answer. Do not include units."
RESULT_MARK = "#### "


@dataclass(frozen=True)
class Problem:
    """A word problem with its worked answer, up to the mark before the result, and the result."""

    question: str
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The whole document."""
        return self.prompt + self.answer


def as_problem(item: dict[str, Any]) -> Problem:
    """A generator's item without its instruction, and with the result written as the generator's answer is."""
    question = item["question"].removesuffix(INSTRUCTION)
    worked = item["metadata"]["answer_cot"].rpartition(RESULT_MARK)[0].rstrip()
    return Problem(question, f"{question}\n{worked}\n{RESULT_MARK}", item["answer"])


def problems(seed: int) -> Iterator[Problem]:
    """Endless problems, each question once. The generator seeds its i-th item with seed + i."""
    seen: set[str] = set()
    dataset = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=HELDOUT_SEED - TRAIN_SEED)
    for item in dataset:
        problem = as_problem(item)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def split(teacher: int, student: int, heldout: int) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """So many problems of each kind; no two lists share one."""
    train = list(islice(problems(TRAIN_SEED), teacher + student))
    known = {problem.question for problem in train}
    unseen = (problem for problem in problems(HELDOUT_SEED) if problem.question not in known)
    return train[student:], train[:student], list(islice(unseen, heldout))


def write_lines(path: Path, records: Iterable[dict[str, str]]) -> None:
    """JSON lines, under a temporary name until they are complete."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    unfinished.replace(path)


def make_text(out_dir: Path, teacher: int, student: int, heldout: int, prompts: int) -> None:
    """Write the four files; `prompts` of the held-out texts become prompts."""
    out_dir.mkdir(parents=True, exist_ok=True)
    teacher_train, student_train, unseen = split(teacher, student, heldout)
    for name, chosen in (("teacher_train", teacher_train), ("student_train", student_train), ("heldout", unseen)):
        write_lines(out_dir / f"{name}.jsonl", ({"text": problem.text} for problem in chosen))
        size = sum(len(problem.text.encode()) for problem in chosen)
        print(f"{out_dir / name}.jsonl: {len(chosen):,} problems, {size:,} bytes")
    write_lines(out_dir / "prompts.jsonl", ({"prompt": p.prompt, "answer": p.answer} for p in unseen[:prompts]))


def main() -> int:
    """Write the files into OUT_DIR; 2 where a count is not positive."""
    parser = argparse.ArgumentParser(description="Make the quickstart's word problems with worked answers.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--teacher", type=int, default=6000, help="documents for the teacher (default: %(default)s)")
    parser.add_argument("--student", type=int, default=300, help="documents for the student (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=200, help="held-out documents (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=64, help="held-out documents as prompts (default: %(default)s)")
    arguments = parser.parse_args()
    counts = (arguments.teacher, arguments.student, arguments.heldout, arguments.prompts)
    if min(counts) < 1:
        parser.error(f"every count must be at least 1, got {counts}")
    make_text(arguments.out_dir, *counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
