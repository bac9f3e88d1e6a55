"""The file of W that a run works with: the one its config names, or one of the run's own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from nemo_xtoken.data.manifest import Side
from nemo_xtoken.projection import KnownTokenizer, automatic_path, build_if_missing


def projection_file(named: str | None, run_dir: Path, student: Side, teacher: Side) -> Path:
    """The file of W. Every rank must call it: where the config names none, rank 0 builds what is missing, others wait.

    The run's own file has the tokenizers that the data was prepared with, and is there again when the run is resumed.
    Raises ProjectionError where it can't be built.
    """
    if named is not None:
        return Path(named)
    pair = KnownTokenizer(student.spec, student.fingerprint), KnownTokenizer(teacher.spec, teacher.fingerprint)
    path = automatic_path(run_dir, *pair)
    if dist.get_rank() == 0:
        if not path.is_file():
            sys.stderr.write(f"building the projection of {student.spec} and {teacher.spec}: {path}\n")
        build_if_missing(run_dir, *pair)
    dist.barrier()
    return path
