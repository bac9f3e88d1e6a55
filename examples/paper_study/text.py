"""The study's text: word problems with worked answers, and sums of two numbers, from reasoning-gym (Apache-2.0).

JSON lines, the same on every machine:

    teacher_train.jsonl  6,000 problems and 6,000 documents of eight sums or differences
    student_train.jsonl    300 and 300 others
    validation.jsonl       100 and 100 others, for the search of rates
    heldout.jsonl          200 and 200 others, for the numbers that count
    prompts.jsonl          200 sums of the held-out documents without their results
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import reasoning_gym

TRAIN_SEED, HELDOUT_SEED, ENDLESS = 1, 1_000_000, 900_000
QUESTION = "State the final answer to the following arithmetic problem: "
INSTRUCTION = " Give the result as your final answer. Do not include units."
SUMS_OF_A_DOCUMENT = 8
COUNTS = {"teacher_train": 6000, "student_train": 300, "validation": 100, "heldout": 200}
PROMPTS = 200
PARTS = ("problems", "sums")
"""What the documents of a file are in turns."""

Sum = tuple[str, str]
"""A sum up to its equals sign, and its result."""


def make_text(folder: Path) -> None:
    """Write the five files into `folder`, unless they are there."""
    if (folder / "prompts.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    train = (_problems(TRAIN_SEED), _sums(TRAIN_SEED))
    unseen = (_problems(HELDOUT_SEED), _sums(HELDOUT_SEED))
    sums: dict[str, list[list[Sum]]] = {}
    for name, count in COUNTS.items():
        problems, documents = train if name.endswith("_train") else unseen
        sums[name] = list(islice(documents, count))
        mixed = [
            text for pair in zip(islice(problems, count), map(_document, sums[name]), strict=True) for text in pair
        ]
        _write(folder / f"{name}.jsonl", ({"text": text} for text in mixed))
    known = set(chain.from_iterable(sums["student_train"]))
    questions = (pair for pair in dict.fromkeys(chain.from_iterable(sums["heldout"])) if pair not in known)
    prompts = ({"prompt": prompt, "answer": answer} for prompt, answer in islice(questions, PROMPTS))
    _write(folder / "prompts.jsonl", prompts)


def teachers_text(folder: Path, part: str, parts: Path) -> Path:
    """The teachers' text in `folder`, or the file in `parts` of its `problems` or `sums`, which is made."""
    whole, out = folder / "teacher_train.jsonl", parts / f"{part}.jsonl"
    if part == "all":
        return whole
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = whole.read_text(encoding="utf-8").splitlines()
    _write(out, (json.loads(line) for line in lines[PARTS.index(part) :: len(PARTS)]))
    return out


def _problems(seed: int) -> Iterator[str]:
    """Endless word problems with their worked answers, each question once."""
    seen: set[str] = set()
    for item in reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=ENDLESS):
        question = item["question"].removesuffix(INSTRUCTION)
        if question not in seen:
            seen.add(question)
            yield f"{question}\n{item['metadata']['answer_cot'].strip()}"


def _sums(seed: int) -> Iterator[list[Sum]]:
    """Endless documents of sums and differences of two numbers of one to three digits."""
    dataset = reasoning_gym.create_dataset(
        "chain_sum", seed=seed, size=ENDLESS, min_terms=2, max_terms=2, min_digits=1, max_digits=3
    )
    for first in range(0, ENDLESS, SUMS_OF_A_DOCUMENT):
        part = (dataset[first + i] for i in range(SUMS_OF_A_DOCUMENT))
        yield [(item["question"].removeprefix(QUESTION), item["answer"]) for item in part]


def _document(sums: Iterable[Sum]) -> str:
    return "\n".join(f"{question} {answer}" for question, answer in sums)


def _write(path: Path, records: Iterable[dict[str, str]]) -> None:
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    unfinished.replace(path)
