"""What a run's directory tells of its checkpoints, its starts and its faults."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nemo_xtoken.integrations.megatron import run_starts
from nemo_xtoken.integrations.megatron.checkpoint_files import FOLDER, MARKER, NAME, read_sums, step_of, what_is_missing
from nemo_xtoken.report.run_record import Record, read_lines

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.(.+?)\.\d+\.\d+")
_STARTED = re.compile(r"attempt (\d+) of job (\S+) on (\S+) at (\S+)")
_ENDED = re.compile(r"attempt \d+ ended with (exit code \d+)(?:; newest checkpoint: (\S+))?")
_BY_SLURM = re.compile(r"\*\*\* JOB \S+ .*DUE TO ([A-Z][A-Z ]+)")
_FOLLOWED = re.compile(r"(requeued|not requeued|no requeue is left|giving up|error|unhealthy node)\b.*")
_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")
KILLED = "It ended without a word, as what is killed does."
MEANINGS = {"exit code 0": "done", "exit code 85": "stopped by a signal, saved", "exit code 137": "killed"}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, as the page shows it."""

    step: int
    written: str
    size: str
    state: str
    is_complete: bool


@dataclass(frozen=True)
class Start:
    """A start of the run: when, UTC, where, and how it ended; `verdict` is better, worse, or empty where unknown."""

    time: str
    host: str
    ended: str = "This was not recorded."
    verdict: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a SLURM job at the run: how it ended and what the job did about it."""

    job: str
    number: int
    nodes: str
    started: str
    ended: str = "no end in the log"
    followed: str = ""


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The checkpoints that are there, oldest first."""
    folder = run_dir / FOLDER
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return [_checkpoint(path) for path in sorted(found, key=step_of)]


def _checkpoint(path: Path) -> Checkpoint:
    missing = what_is_missing(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    marker = path / MARKER
    written = _time(marker.stat().st_mtime) if marker.is_file() else ""
    if missing is not None:
        state = f"not complete: {missing}"
    else:
        state = "complete, with SHA-256 sums" if read_sums(path) else "complete"
    return Checkpoint(step_of(path), written, size(sum(file.stat().st_size for file in files)), state, missing is None)


def starts(run_dir: Path) -> list[Start]:
    """When and where the run was started, oldest first, and how each start ended.

    Of a run that kept no record of that, each start has a file of TensorBoard events of its own.
    """
    lines = read_lines(run_dir / run_starts.FILE)
    begun = [number for number, line in enumerate(lines) if "ended" not in line]
    if begun:
        found = [_start(lines[first:after]) for first, after in itertools.pairwise([*begun, len(lines)])]
        silent = [KILLED] * (len(found) - 1) + [f"{KILLED[:-1]}, or it is running still."]
        return [replace(start, ended=start.ended or text) for start, text in zip(found, silent, strict=True)]
    names = (path.name for path in run_dir.glob("tensorboard/events.*"))
    found = sorted({(int(match[1]), match[2]) for name in names if (match := _EVENTS.fullmatch(name))})
    return [Start(_time(seconds), host) for seconds, host in found]


def _start(lines: Sequence[Record]) -> Start:
    """A start from its line and that of its end; of one that has none, `ended` is empty."""
    begin, *ends = lines
    steps = f"{begin['steps']:,}"
    time, host = begin["time"][:19].replace("T", " "), begin["host"]
    if not ends:
        return Start(time, host, "", "worse")
    end = ends[0]
    message = end.get("message", "").rstrip(".")
    where = f"after step {end['step']:,} of {steps}" if end["step"] else "before its first step"
    if end["ended"] == "finished":
        return Start(time, host, f"It finished, {where}.", "better")
    if end["ended"] == "stopped":
        return Start(time, host, f"It was stopped {where}: {message}.")
    return Start(time, host, f"It failed {where}: {message}.", "worse")


def attempts(run_dir: Path) -> list[Attempt]:
    """What the logs of the run's SLURM jobs say of each attempt, in the order of their starts."""
    logs = sorted((run_dir / "launch" / "logs").glob("*.log"))
    found = [attempt for log in logs for attempt in _attempts(log.read_text("utf-8", errors="replace").splitlines())]
    return sorted(found, key=lambda attempt: attempt.started)


def _attempts(lines: Iterable[str]) -> Iterator[Attempt]:
    attempt: Attempt | None = None
    for line in lines:
        if match := _STARTED.fullmatch(line):
            if attempt is not None:
                yield attempt
            attempt = Attempt(match[2], int(match[1]), match[3], match[4][:19].replace("T", " "))
        elif attempt is not None:
            attempt = _with(attempt, line)
    if attempt is not None:
        yield attempt


def _with(attempt: Attempt, line: str) -> Attempt:
    """An attempt with what a line of its log adds."""
    if match := _ENDED.fullmatch(line):
        meaning = MEANINGS.get(match[1])
        checkpoint = f", newest checkpoint {match[2]}" if match[2] else ""
        return replace(attempt, ended=f"{match[1]}{f' ({meaning})' if meaning else ''}{checkpoint}")
    if match := _BY_SLURM.search(line):
        cause = match[1].strip().lower()
        return attempt if cause == "job requeue" else _followed(attempt, f"SLURM: {cause}")
    return _followed(attempt, line) if _FOLLOWED.fullmatch(line) else attempt


def _followed(attempt: Attempt, text: str) -> Attempt:
    return replace(attempt, followed=f"{attempt.followed}; {text}" if attempt.followed else text)


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in _SIZES[:-1]:
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} {_SIZES[-1]}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
