"""Checkpoints as directories: their names, which of them are complete, which are too old. Knows nothing of Megatron.

<run_dir>/checkpoints/step-00000100/        complete: everything named in complete.json is there, in full; it has sizes
                                            and SHA-256 sums
<run_dir>/checkpoints/step-00000200.tmp/    being written, or left by a run that was killed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from nemo_xtoken.errors import CheckpointError

MARKER = "complete.json"
FOLDER = "checkpoints"
SUMS = "sums-of-rank-{rank}.json"
ENDS = 1 << 20
"""Bytes of either end of a file that tell it apart from another of its size."""
NAME = re.compile(r"step-(\d{8,})")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies once it is complete."""
    return run_dir / FOLDER / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def directory_of_writing(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies until it is complete."""
    return checkpoint_path(run_dir, step).with_suffix(".tmp")


def start_writing(run_dir: Path, step: int) -> Path:
    """An empty directory to write the checkpoint of `step` into. What a killed run has left half-written goes."""
    for path in _ours(run_dir):
        if path.suffix == ".tmp":
            shutil.rmtree(path, ignore_errors=True)
    path = directory_of_writing(run_dir, step)
    path.mkdir(parents=True)
    return path


def sum_of(file: Path) -> str:
    """SHA-256 of a file as the disk has it: what the system keeps of it in memory is written out and dropped before."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def leave_sums(written: Path, rank: int) -> None:
    """Sum the tensor files of one rank, for `sums_of_rank` in another process of it."""
    (written / SUMS.format(rank=rank)).write_text(json.dumps(sums_of_rank(written, rank)), encoding="utf-8")


def sums_of_rank(written: Path, rank: int) -> dict[str, str]:
    """Sums of the tensor files of one rank: those that `leave_sums` has left, which are then gone, or made now."""
    note = written / SUMS.format(rank=rank)
    left: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        left = json.loads(note.read_text(encoding="utf-8"))
    note.unlink(missing_ok=True)
    return {file.name: left.get(file.name) or sum_of(file) for file in sorted(written.glob(f"__{rank}_*"))}


def sums_of_the_rest(written: Path) -> dict[str, str]:
    """Sums of the files that belong to no rank."""
    rest = [file for file in _files(written) if not file.name.startswith(("__", "sums-of-rank-"))]
    return {str(file.relative_to(written)): sum_of(file) for file in rest}


def what_differs(checkpoint: Path, sums: Mapping[str, str]) -> str | None:
    """Which of these files does not have its sum, None where all have."""
    for name, expected in sums.items():
        try:
            found = sum_of(checkpoint / name)
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written (SHA-256 {found[:12]} instead of {expected[:12]})"
    return None


def read_sums(checkpoint: Path) -> dict[str, str]:
    """Sums of a complete checkpoint's files; none of one that was written without."""
    return json.loads((checkpoint / MARKER).read_text(encoding="utf-8")).get("sha256", {})


def finish_writing(written: Path, sums: Mapping[str, str] | None = None) -> Path:
    """Mark a directory from `start_writing` complete and give it its final name: that is one rename."""
    sizes = {str(file.relative_to(written)): file.stat().st_size for file in _files(written)}
    with (written / MARKER).open("w", encoding="utf-8") as marker:
        json.dump({"files": sizes, "sha256": dict(sums or {})}, marker, indent=1)
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


def latest_complete(run_dir: Path, *, warn: bool = True, passing_over: Collection[Path] = ()) -> Path | None:
    """The complete checkpoint of the highest step, or None; each one passed over gets a warning line."""
    for checkpoint in sorted(set(_checkpoints(run_dir)) - set(passing_over), key=step_of, reverse=True):
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


def fingerprint(checkpoint: Path) -> str:
    """What tells checkpoints apart, wherever they lie: names, sizes, first and last MiB of their files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(checkpoint)} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            content.seek(max(size - ENDS, 0))
            digest.update(content.read(ENDS))
    return digest.hexdigest()


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and what was left half-written before them."""
    complete = [path for path in sorted(_checkpoints(run_dir), key=step_of) if what_is_missing(path) is None]
    kept = set(complete[-keep:])
    for path in _ours(run_dir):
        if path not in kept:
            # Without its marker first: a deletion that is cut short leaves nothing that looks complete.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def _ours(run_dir: Path) -> list[Path]:
    """Checkpoints, complete or not, and what is being written."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name.removesuffix(".tmp"))]


def _checkpoints(run_dir: Path) -> list[Path]:
    return [path for path in _ours(run_dir) if NAME.fullmatch(path.name)]
