"""A run's directory: one job at a time, one config from its first step to its last."""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import differences, load_run, save_run
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.checkpoint_files import latest_complete, step_of

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "lock"
LOCK_PATIENCE = 30.0
"""Seconds to wait for the last writers of a run that was just killed."""

MAY_CHANGE = (
    "run_dir",
    "device",
    "parallel",
    "train.steps",
    "train.log_interval",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.async_save",
    "train.validation_interval",
    "train.validation_batches",
    "train.hang_seconds",
)
"""What may differ when a run is resumed: none of it decides what the steps compute, up to rounding."""

OF_A_TEACHER = re.compile(r"teachers\.\d+\.(kind|patience_seconds|parallel|offload)(\..*)?")
"""The same of each teacher: where it runs."""

MAY_NOT_CHANGE = ("parallel.use_distributed_optimizer",)
"""What may not, though it is within: the optimizer's state is stored in another form."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the directory for this process and what it forks. Raises ConfigError where another job holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("w", encoding="utf-8") as file:
        _wait_for(file.fileno(), run_dir)
        yield


def _wait_for(lock: int, run_dir: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another job is training in {run_dir}; wait for it or choose another run_dir"
                ) from None
            time.sleep(0.1)


def adopt_config(config: RunConfig) -> None:
    """Store the config of a new run; check that of a resumed one. Raises ConfigError naming the fields that changed."""
    check_config(config)
    save_run(config, Path(config.run_dir) / CONFIG_FILE)


def check_config(config: RunConfig) -> None:
    """Raises ConfigError where the directory holds a run whose config has other fields than may change."""
    path = Path(config.run_dir) / CONFIG_FILE
    if path.exists():
        changed = [name for name in differences(load_run(path), config) if not _may_change(name)]
        if changed:
            raise ConfigError(
                f"{config.run_dir} holds a run with another {', '.join(changed)}: give back the old value "
                f"(see {path}) or choose another run_dir"
            )


def _may_change(name: str) -> bool:
    allowed = any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)
    allowed = allowed or OF_A_TEACHER.fullmatch(name) is not None
    return allowed and name not in MAY_NOT_CHANGE


def steps_done(run_dir: Path) -> int:
    """The step of the latest complete checkpoint, 0 without one."""
    latest = latest_complete(run_dir, warn=False)
    return 0 if latest is None else step_of(latest)
