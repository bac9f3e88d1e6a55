"""What was submitted for a run, kept in its directory: `<run_dir>/launch/jobs.jsonl`, a line per job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_xtoken.errors import DataError

FILE = "jobs.jsonl"


@dataclass(frozen=True)
class Submission:
    """One job: SLURM's id, its name, its script, and when it was submitted (ISO 8601)."""

    job_id: str
    name: str
    script: str
    submitted: str


def record(folder: Path, submission: Submission) -> None:
    """Adds a line to the folder's file."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(submission)) + "\n")


def submissions(folder: Path) -> list[Submission]:
    """Everything that was submitted, oldest first. Raises DataError where there is nothing."""
    path = folder / FILE
    found = list(_read(path)) if path.is_file() else []
    if not found:
        raise DataError(f"{folder.parent}: nothing was submitted for this run; see `nemo-xtoken launch --help`")
    return found


def _read(path: Path) -> Iterator[Submission]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield Submission(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: {line[:60]!r} is not a record of a job; delete the line") from error
