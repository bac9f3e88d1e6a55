"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NOT_SHOWN = {"step", "ratio", "chunks", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "memory_mib"}


def summary(line: Mapping[str, float | int]) -> str:
    """What the loss reports of a step, by whatever names, and its speed; of each of several teachers its loss alone."""
    shown = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in line.items() if _is_shown(name)]
    return "  ".join([*shown, f"{line['tokens_per_second']:,.0f} tokens/s"])


def _is_shown(name: str) -> bool:
    metric, _, teacher = name.partition("/")
    return metric not in NOT_SHOWN and (not teacher or metric == "kd")


class ProgressDisplay:
    """Shows steps as they come. Silent on all ranks but the first."""

    def __init__(self, steps: int, done: int, log_interval: int, silent: bool) -> None:
        self._steps, self._log_interval, self._silent = steps, log_interval, silent
        self._started_at = done
        self._seconds = 0.0
        self._bar = None
        if not silent and sys.stdout.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, line: Mapping[str, float | int]) -> None:
        """Show one step: a mapping as in the metrics file."""
        step = int(line["step"])
        self._seconds += line["seconds"]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=summary(line))
        elif not self._silent and (step % self._log_interval == 0 or step == self._steps):
            _write(f"step {step}/{self._steps}  {summary(line)}  {self._time_left(step)} left")

    def say(self, text: str) -> None:
        """Print a line of text above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._silent:
            _write(text)

    def _time_left(self, step: int) -> str:
        seconds = round(self._seconds / (step - self._started_at) * (self._steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
