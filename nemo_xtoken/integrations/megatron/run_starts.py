"""How each start of a run ended, as JSON lines in its directory: one when it begins, one when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nemo_xtoken.errors import StoppedError, XTokenError
from nemo_xtoken.integrations.megatron.run_dir import METRICS_FILE

FILE = "starts.jsonl"
TAIL = 1 << 16
"""Bytes at the end of the metrics in which their last line is looked for."""


@contextlib.contextmanager
def recorded(run_dir: Path, after_step: int, steps: int) -> Iterator[None]:
    """Write that a run starts after a step, towards `steps`, and how it ends: finished, stopped or failed.

    Of a process that is killed only the first line is there.
    """
    _append(run_dir, {"host": socket.gethostname(), "after_step": after_step, "steps": steps})
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            _append(run_dir, _ending(error) | {"step": last_step(run_dir)})
        raise
    with contextlib.suppress(OSError):
        _append(run_dir, {"ended": "finished", "step": last_step(run_dir)})


def _ending(error: BaseException) -> dict[str, str | int]:
    if isinstance(error, StoppedError):
        return {"ended": "stopped", "message": str(error)}
    if isinstance(error, XTokenError):
        return {"ended": "failed", "message": str(error)}
    if isinstance(error, KeyboardInterrupt):
        return {"ended": "stopped", "message": "interrupted from the keyboard"}
    first_line = str(error).partition("\n")[0]
    return {"ended": "failed", "message": f"{type(error).__name__}: {first_line}"}


def last_step(run_dir: Path) -> int:
    """The last step that the run has logged, 0 where there is none."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def _append(run_dir: Path, entry: dict[str, str | int]) -> None:
    """One write of a whole line, begun anew where a killed process left half of one."""
    path = run_dir / FILE
    time = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps({"time": time, **entry}).encode() + b"\n")
