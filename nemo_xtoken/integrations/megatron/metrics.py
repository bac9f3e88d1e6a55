"""The curve of a run: one JSON line per step in metrics.jsonl, and the same numbers as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from torch.utils.tensorboard import SummaryWriter

from nemo_xtoken.errors import XTokenError
from nemo_xtoken.integrations.megatron.run_dir import METRICS_FILE
from nemo_xtoken.whole_file import write_whole

TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends to a run's metrics from the step after `step` on; what a killed run logged beyond that is cut off."""

    def __init__(self, run_dir: Path, step: int) -> None:
        path = run_dir / METRICS_FILE
        keep_lines_up_to(path, step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=step + 1)

    def write(self, line: Mapping[str, float | int]) -> None:
        """Log one step; `line` has a "step". Raises XTokenError where that can't be written."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in line.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(line["step"]))
        except OSError as error:
            raise XTokenError(
                f"{self._file.name}: step {line['step']} can't be logged: {error.strerror or error}; "
                "make room and start the same command again, which goes on from the latest checkpoint"
            ) from error

    def close(self) -> None:
        """Write out what is buffered; what does not fit on the disk was told by `write`."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._events.close()


def keep_lines_up_to(path: Path, step: int) -> None:
    """Cut a metrics file to its whole lines of steps up to `step`."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_up_to(line, step)]
    write_whole(path, "".join(f"{line}\n" for line in kept))


def _is_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
