"""`nemo-xtoken evaluate`."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from nemo_xtoken.cli.console import Json, print_json, stdout, working
from nemo_xtoken.errors import DataError
from nemo_xtoken.whole_file import write_whole

WIDTH = 64
"""Of the names."""


def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")],
    data: Annotated[Path, typer.Option(help="Held-out text, prepared with the run's tokenizer.")],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Lines of {"prompt": ..., "answer": ...}, for the exact-answer rate.'),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a run's last checkpoint on held-out text; the numbers go to evaluation.json in RUN_DIR as well."""
    questions = [] if prompts is None else read_questions(prompts)
    from nemo_xtoken.integrations.megatron import evaluate as measure
    from nemo_xtoken.report.run_record import EVALUATION_FILE

    with working("evaluating"):
        results = {
            name: None if math.isnan(value) else value for name, value in measure(run_dir, data, questions).items()
        }
    save(results, run_dir / EVALUATION_FILE)
    if json:
        print_json(results)
        return
    for line in result_lines(results):
        stdout.print(line, soft_wrap=True)


def read_questions(path: Path) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a file. Raises DataError, naming the line, where it holds something else."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected prompts and answers in JSON lines")
    questions: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json_format.loads(line)
            questions.append((str(entry["prompt"]), str(entry["answer"])))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f'{path}:{number}: expected {{"prompt": ..., "answer": ...}}, got {line[:40]!r}') from error
    if not questions:
        raise DataError(f"{path}: expected prompts, got an empty file")
    return questions


def save(results: Mapping[str, float | None], path: Path) -> None:
    """Writes the numbers as JSON, whole or not at all."""
    write_whole(path, json_format.dumps(results, indent=2) + "\n")


def result_lines(results: Mapping[str, float | None]) -> Iterator[str]:
    """The numbers that there are, in the words of the report; then those of each class of tokens."""
    from nemo_xtoken.projection import TokenClass
    from nemo_xtoken.report.held_out import compare

    for found in compare(results, None):
        yield f"{found.measure.name:{WIDTH}}{found.run:>9}  {found.measure.unit}".rstrip()
    yield "Held-out loss by class of tokens, beside each class the number of its tokens"
    for name in TokenClass:
        loss, count = (results.get(f"{what}/{name.value}") for what in ("loss", "tokens"))
        if loss is not None and count is not None:
            yield f"{f'{name.label} ({count:,.0f})':{WIDTH}}{loss:>9.3f}  nats per token"
