"""`python -m tests.distributed.train_toy FOLDER NAME STEPS TP_SIZE`: trains a toy student, for tests that kill it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy


def main(folder: str, name: str, steps: str, tp_size: str) -> int:
    """Train; an error the user can mend becomes one line and exit code 1."""
    train = replace(toy.TRAIN, steps=int(steps), checkpoint_interval=3)
    parallel = ParallelConfig(tensor_model_parallel_size=int(tp_size))
    try:
        launch(toy.student_run(Path(folder), name, train=train, parallel=parallel))
    except XTokenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
