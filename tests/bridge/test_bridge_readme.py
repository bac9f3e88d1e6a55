"""What docs/bridge.md shows runs, with tiny models and data in the place of a user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.integrations.bridge import run
from nemo_xtoken.integrations.bridge.recipes import RECIPES
from tests.bridge import tiny
from tests.distributed.ranks import run_ranks
from tests.documents import CHECKOUT, bash_blocks, blocks, commands, with_stand_ins

pytestmark = pytest.mark.timeout(240)

PAGE = CHECKOUT / "docs" / "bridge.md"


def test_a_config_of_the_users_is_extended_and_trained(folder: Path) -> None:
    (block,) = blocks(PAGE, "python")
    stand_ins = {"Qwen/Qwen3-4B": str(folder / "qwen3"), '"data"': f'"{folder / "data"}"', "4096": "32", "5120": "48"}
    run_ranks(1, execute, folder, with_stand_ins(block, stand_ins), timeout=150)
    assert (folder / "readme" / "latest_checkpointed_iteration.txt").read_text() == "2"


def execute(folder: Path, block: str) -> None:
    """On one rank, whose own config has two steps."""
    config = tiny.student_config(folder, "readme", tp=1, pp=1, steps=2, train={})
    names: dict[str, Any] = {"your_config_container": config}
    exec(block, names)


def test_the_commands_run(folder: Path, tmp_path: Path) -> None:
    """The second on two ranks of a CPU in the place of eight GPUs, with a recipe for it."""
    (block,) = bash_blocks(PAGE)
    stand_ins = {
        "--nproc-per-node 8": "--nproc-per-node 2",
        "llama32_1b_from_qwen3_4b_8gpu": f"--device cpu tiny_cpu student={folder}/llama teacher={folder}/qwen3",
        "DATA": f"{folder}/data",
        "w.safetensors": f"{folder}/projection.safetensors",
        "20000": "2",
    }
    script = with_stand_ins(block, stand_ins)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(CHECKOUT), "PET_STANDALONE": "1"}  # any free port
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(RECIPES) <= set(done.stdout.split())
    assert "iteration        2/" in done.stdout


def test_the_recipe_of_the_commands_takes_their_keys_on_their_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = (words for words, whole in commands(PAGE) if whole and words[0] == "torchrun")
    ranks = words[words.index("--nproc-per-node") + 1]
    assert run.main(["--check", ranks, *words[words.index("-m") + 2 :]]) == 0
    assert "data parallel size 4" in capsys.readouterr().out
