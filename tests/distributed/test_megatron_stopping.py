"""Signals that end a training with a checkpoint, and the watchdog."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.megatron.run_dir import steps_done
from tests.conftest import CHECKOUT
from tests.distributed import toy

pytestmark = pytest.mark.timeout(200)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_the_next_start_goes_on_with_the_same_curve(tmp_path: Path, number: signal.Signals) -> None:
    toy.make_data(tmp_path)
    launch(toy.teacher_run(tmp_path))
    train = replace(toy.TRAIN, steps=200, checkpoint_interval=1000)
    run, whole = (
        toy.student_run(tmp_path, name, train=train, parallel=ParallelConfig(data_parallel_size=2))
        for name in ("stopped", "whole")
    )
    save_run(run, tmp_path / "run.yaml")
    command = [sys.executable, "-c", "from nemo_xtoken.cli import main; main()", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = Path(run.run_dir) / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    done = steps_done(Path(run.run_dir))
    assert process.returncode == 85
    assert 3 <= done < 200
    assert f"{number.name}: {run.run_dir} is saved after step {done} of 200" in errors
    launch(run)
    launch(whole)
    assert toy.metrics(run) == toy.metrics(whole)


def test_a_hang_ends_the_process_and_shows_where_it_was() -> None:
    program = (
        "import time\n"
        "from nemo_xtoken.integrations.megatron.stopping import Watchdog\n"
        "def step_that_hangs(): time.sleep(60)\n"
        "with Watchdog(float({seconds})).watching() as watchdog:\n"
        "    for _ in range(4):\n"
        "        time.sleep(0.5)\n"
        "        watchdog.feed()\n"
        "    {then}\n"
    )
    hanging, healthy, off = (
        subprocess.run(
            [sys.executable, "-c", program.format(seconds=seconds, then=then)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        for seconds, then in ((1.5, "step_that_hangs()"), (1.5, "pass"), (0, "time.sleep(2)"))
    )
    assert hanging.returncode == 1
    assert "in step_that_hangs" in hanging.stderr
    assert (healthy.returncode, off.returncode) == (0, 0)
