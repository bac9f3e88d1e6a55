"""`nemo-xtoken evaluate`."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nemo_xtoken.cli.console import Json, print_json, stdout, working
from nemo_xtoken.errors import DataError


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
    stdout.print(results_table(results))


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
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json_format.dumps(results, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def results_table(results: Mapping[str, float | None]) -> Table:
    """One line per number."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.items():
        whole = value is not None and value == int(value) and abs(value) >= 2
        text = "none" if value is None else f"{value:,.0f}" if whole else f"{value:.4f}"
        table.add_row(name.replace("_", " "), text)
    return table
