"""Processes that begin with everything imported: forks of the tests' own. A program that is started takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_xtoken.integrations.megatron.local_ranks import end_with

PATIENCE = 150.0
"""Seconds that a process is waited for."""


def nemo_xtoken(*arguments: object) -> int:
    """What the program of this name does, and its exit code."""
    from nemo_xtoken.cli.app import run

    return run([str(argument) for argument in arguments])


class Forked:
    """`function(*args)` in a process of its own, whose exit code it returns; ends with the process of the tests.

    log     stdout is appended to this file with the suffix `.out`, stderr to that with `.err`
    folder  the process's working directory
    """

    def __init__(self, function: Callable[..., int], *args: Any, log: Path, folder: Path | None = None) -> None:
        self._out, self._err = log.with_name(f"{log.name}.out"), log.with_name(f"{log.name}.err")
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(function, args, folder, os.getpid()))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code once it has ended, minus the signal's number where one has ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"not done after {timeout} s: {self.texts()}")
        return self._process.exitcode

    def texts(self) -> tuple[str, str]:
        """What has been written to stdout and to stderr."""
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (self._out, self._err))
        return out, err

    def _run(self, function: Callable[..., int], args: tuple[Any, ...], folder: Path | None, parent: int) -> None:
        end_with(parent)
        for number, path in ((1, self._out), (2, self._err)):
            with path.open("ab") as file:
                os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, encoding="utf-8") for number in (1, 2))
        if folder is not None:
            os.chdir(folder)
        sys.exit(function(*args))
