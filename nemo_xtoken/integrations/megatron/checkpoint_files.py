"""Checkpoints as directories: their names, which of them are complete, which are too old. Knows nothing of Megatron.

<run_dir>/checkpoints/step-00000100/        complete: everything named in complete.json is there, in full
<run_dir>/checkpoints/step-00000200.tmp/    being written, or left by a run that was killed
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, cast

from nemo_xtoken.errors import CheckpointError

MARKER = "complete.json"
FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d{8,})")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies once it is complete."""
    return run_dir / FOLDER / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def start_writing(run_dir: Path, step: int) -> Path:
    """An empty directory to write the checkpoint of `step` into."""
    path = checkpoint_path(run_dir, step).with_suffix(".tmp")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def finish_writing(written: Path) -> Path:
    """Mark a directory from `start_writing` complete and give it its final name: that is one rename."""
    sizes = {
        str(file.relative_to(written)): file.stat().st_size for file in sorted(written.rglob("*")) if file.is_file()
    }
    with (written / MARKER).open("w", encoding="utf-8") as marker:
        json.dump({"files": sizes}, marker, indent=1)
        marker.flush()
        os.fsync(marker.fileno())
    final = written.with_suffix("")
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    return final


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete, None where it is."""
    try:
        content = cast("dict[str, Any]", json.loads((checkpoint / MARKER).read_text(encoding="utf-8")))
        sizes = cast("dict[str, int]", content["files"])
    except (OSError, ValueError, KeyError):
        return f"it has no readable {MARKER}"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def latest_complete(run_dir: Path, *, warn: bool = True) -> Path | None:
    """The complete checkpoint of the highest step, or None; each one passed over gets a warning line."""
    for checkpoint in sorted(_checkpoints(run_dir), key=step_of, reverse=True):
        missing = what_is_missing(checkpoint)
        if missing is None:
            return checkpoint
        if warn:
            sys.stderr.write(f"warning: checkpoint {checkpoint} is passed over: {missing}\n")
    return None


def find_checkpoint(path: Path, owner: str) -> Path:
    """The checkpoint that a run directory's latest one, or the path of one itself, names. Raises CheckpointError."""
    if NAME.fullmatch(path.name):
        missing = what_is_missing(path)
        if missing is not None:
            raise CheckpointError(f"{owner}: checkpoint {path} is not complete: {missing}; use another one")
        return path
    latest = latest_complete(path, warn=False)
    if latest is None:
        raise CheckpointError(
            f"{owner}: expected a run directory with a complete checkpoint at {path}, found none; "
            "train that model first"
        )
    return latest


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and what was left half-written before them."""
    complete = [path for path in sorted(_checkpoints(run_dir), key=step_of) if what_is_missing(path) is None]
    kept = set(complete[-keep:])
    for path in (run_dir / FOLDER).iterdir():
        is_ours = NAME.fullmatch(path.name.removesuffix(".tmp")) is not None
        if is_ours and path not in kept:
            # Without its marker first: a deletion that is cut short leaves nothing that looks complete.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(run_dir: Path) -> list[Path]:
    folder = run_dir / FOLDER
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
