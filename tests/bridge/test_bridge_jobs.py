"""The command as a user starts it: ranks of its own, of torchrun and of srun, all with the curve of one process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge import run
from tests.bridge import tiny
from tests.conftest import CHECKOUT
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

Lines = list[dict[str, float]]
STEPS = 4
COMMAND = ["-m", "nemo_xtoken.integrations.bridge.run", "--device", "cpu", "tiny_cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def keys(folder: Path, *others: str) -> list[str]:
    return [
        f"student={folder / 'llama'}",
        f"teacher={folder / 'qwen3'}",
        f"data.path={folder / 'data'}",
        f"teachers.0.projection={folder / 'projection.safetensors'}",
        "scheduler.lr_decay_iters=20",
        *others,
    ]


@pytest.fixture(scope="module")
def one_process(folder: Path) -> Lines:
    """The recipe's curve without a command, a checkpoint or a second rank."""

    def on_rank() -> Lines:
        save = folder / "one_process"
        paths = (f"{key}={save}" for key in ("checkpoint.save", "checkpoint.load", "logger.tensorboard_dir"))
        overrides = keys(folder, f"train.train_iters={STEPS}", *paths)
        return tiny.distil(run.configured("tiny_cpu", overrides))

    return run_ranks(1, on_rank, timeout=150)[0]


def start(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = os.pathsep.join([str(CHECKOUT), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**environment, "PYTHONPATH": path, **(variables or {})},
    )


def outputs(processes: Sequence[subprocess.Popen[str]]) -> str:
    """What they have said once they have ended well."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return "\n".join(said)


def logged(output: str) -> dict[int, dict[str, float]]:
    """The losses of each step in Bridge's log."""
    lines = [line for line in output.splitlines() if "consumed samples" in line]
    numbers = {int(re.findall(r"iteration +(\d+)/", line)[0]): line for line in lines}
    return {
        step: {name: float(value) for name, value in re.findall(r"\| (\w+): (\d\.\d+E[+-]\d+)", line)}
        for step, line in numbers.items()
    }


def assert_same(found: Mapping[int, Mapping[str, float]], expected: Lines, steps: range) -> None:
    assert list(found) == list(steps)
    for step, line in found.items():
        for name in ("loss", "ce", "kd", "ratio"):
            assert line[name] == pytest.approx(expected[step - 1][name], rel=1e-5), (step, name)


def test_the_command_trains_a_recipe_and_torchrun_goes_on_with_it(
    folder: Path, tmp_path: Path, one_process: Lines
) -> None:
    cut = keys(folder, "model.tensor_model_parallel_size=2")
    first = outputs([start([*COMMAND, *cut, "train.train_iters=2"], tmp_path)])
    assert_same(logged(first), one_process, range(1, 3))
    saved = tmp_path / "checkpoints" / "tiny_cpu" / "latest_checkpointed_iteration.txt"
    assert saved.read_text() == "2"
    second = outputs([start([*TORCHRUN, *COMMAND, *cut, f"train.train_iters={STEPS}"], tmp_path)])
    assert_same(logged(second), one_process, range(3, STEPS + 1))
    assert saved.read_text() == str(STEPS)


def test_srun_trains_with_two_tasks(folder: Path, tmp_path: Path, one_process: Lines) -> None:
    """Two processes with the variables that srun sets for each, and an address that the batch script sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        variables = {
            **{f"SLURM_{name}": "2" for name in ("NTASKS", "NPROCS", "STEP_NUM_TASKS", "NTASKS_PER_NODE")},
            **{f"SLURM_{name}": str(rank) for name in ("PROCID", "LOCALID")},
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
            "SLURM_NODEID": "0",
            "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NODELIST": "localhost",
            "SLURM_TASKS_PER_NODE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(start([*COMMAND, *keys(folder, f"train.train_iters={STEPS}")], tmp_path, variables))
    said = outputs(processes)
    assert_same(logged(said), one_process, range(1, STEPS + 1))


def test_srun_without_an_address_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="under srun MASTER_ADDR and MASTER_PORT must be set"):
        run.rank_of_this_process()
