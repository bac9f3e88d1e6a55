"""A recipe of Megatron-Bridge under a real srun, in the environment of the suite `bridge`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, CI

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

PYTHON = CHECKOUT / ".venv-bridge" / "bin" / "python"
MAKE = "import sys, pathlib; from tests.tiny_huggingface import make_all; make_all(pathlib.Path(sys.argv[1]))"
SCRIPT = """#!/bin/bash
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29617
srun {python} -m nemo_xtoken.integrations.bridge.run --device cpu tiny_cpu student={folder}/llama \
  teacher={folder}/qwen3 data.path={folder}/data teachers.0.projection={folder}/projection.safetensors \
  train.train_iters=2 model.tensor_model_parallel_size=2 checkpoint.save={folder}/saved checkpoint.load={folder}/saved
"""


def test_a_recipe_of_bridge_trains_on_two_nodes(tmp_path: Path) -> None:
    if not PYTHON.exists():
        reason = f"needs Megatron-Bridge in {PYTHON.parents[1]}: tests/run.sh --suite bridge makes it"
        pytest.fail(reason) if CI else pytest.skip(reason)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    subprocess.run([PYTHON, "-c", MAKE, tmp_path], check=True, env=environment)
    script = tmp_path / "job.sbatch"
    script.write_text(SCRIPT.format(python=PYTHON, folder=tmp_path), encoding="utf-8")
    log = tmp_path / "job.log"
    options = ["--partition=debug", "--nodes=2", "--ntasks-per-node=1", "--wait", f"--output={log}"]
    job = subprocess.run(["sbatch", *options, script], check=False, env=environment, cwd=tmp_path)
    said = log.read_text(encoding="utf-8")
    assert job.returncode == 0, said[-3000:]
    assert "iteration        2/" in said
    assert "kd: " in said
    assert (tmp_path / "saved" / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "2"
