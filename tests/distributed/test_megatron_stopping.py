"""Signals that end a training with a checkpoint, and the watchdog."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from nemo_xtoken.integrations.megatron.stopping import Watchdog
from tests.distributed import toy
from tests.forked import Forked, nemo_xtoken

pytestmark = pytest.mark.timeout(200)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_the_next_start_goes_on_with_the_same_curve(
    toy_folder: Path, number: signal.Signals
) -> None:
    train = replace(toy.TRAIN, steps=200, checkpoint_interval=1000)
    run, whole = (
        toy.student_run(toy_folder, f"{name}_{number.name}", train=train, parallel=ParallelConfig(data_parallel_size=2))
        for name in ("stopped", "whole")
    )
    # The learning rate must not depend on the length of the run.
    run, whole = (replace(each, optimizer=replace(each.optimizer, lr_decay_style="constant")) for each in (run, whole))
    save_run(run, toy_folder / "run.yaml")
    process = Forked(nemo_xtoken, "train", toy_folder / "run.yaml", log=toy_folder / number.name)
    metrics = Path(run.run_dir) / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == 85
    done = steps_done(Path(run.run_dir))
    assert 3 <= done < 200
    assert f"{number.name}: {run.run_dir} is saved after step {done} of 200" in process.texts()[1]
    train = replace(train, steps=done + 4)
    launch(replace(run, train=train))
    launch(replace(whole, train=train))
    assert toy.metrics(run) == toy.metrics(whole)


def step_that_hangs() -> None:
    time.sleep(60)


def watched_steps(seconds: float, then: Callable[[], None]) -> int:
    with Watchdog(seconds).watching() as watchdog:
        for _ in range(4):
            time.sleep(0.5)
            watchdog.feed()
        then()
    return 0


def test_a_hang_ends_the_process_and_shows_where_it_was(tmp_path: Path) -> None:
    cases: dict[str, tuple[float, Callable[[], None]]] = {
        "hanging": (1.5, step_that_hangs),
        "healthy": (1.5, lambda: None),
        "off": (0, lambda: time.sleep(2)),
    }
    processes = {name: Forked(watched_steps, *case, log=tmp_path / name) for name, case in cases.items()}
    assert {name: process.wait() for name, process in processes.items()} == {"hanging": 1, "healthy": 0, "off": 0}
    assert "in step_that_hangs" in processes["hanging"].texts()[1]
