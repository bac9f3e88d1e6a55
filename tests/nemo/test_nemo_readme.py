"""What docs/nemo.md shows runs, with tiny models, data and a trainer in the place of a user's."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from transformers import AutoModelForCausalLM

from nemo_xtoken.integrations.nemo import CrossTokenizerDistillationModel
from tests import tiny_huggingface
from tests.distributed import toy
from tests.documents import CHECKOUT, bash_blocks, blocks
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks

pytestmark = pytest.mark.timeout(240)


PAGE = CHECKOUT / "docs" / "nemo.md"
PYTHON = blocks(PAGE, "python")


def test_there_are_two_blocks() -> None:
    assert len(PYTHON) == 2


def test_an_extended_recipe() -> None:
    names: dict[str, Any] = {}
    exec(PYTHON[0], names)
    recipe = names["recipe"]
    assert recipe.model.__fn_or_cls__ is CrossTokenizerDistillationModel
    assert recipe.model.config.seq_length == recipe.data.seq_length == 4096
    assert [teacher.checkpoint for teacher in recipe.model.distillation.teachers] == ["nemo/qwen"]


def test_import_training_and_export(tmp_path: Path) -> None:
    tiny_huggingface.make_all(tmp_path)
    run_nemo_ranks(1, train_and_export, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported").config.num_hidden_layers == 2


def train_and_export(folder: Path) -> None:
    run_dir = folder / "run"
    stand_ins = {
        "Qwen/Qwen3-4B": folder / "qwen3",
        "meta-llama/Llama-3.2-1B": folder / "llama",
        '"nemo/qwen"': f'"{folder / "nemo-qwen"}"',
        '"DATA"': f'"{folder / "data"}"',
        '"RUN/checkpoints/LAST"': f'next(Path("{run_dir}/checkpoints").glob("*-last"))',
        '"exported"': f'"{folder / "exported"}"',
        "4096": 32,
        "5120": 48,
        "768": 8,
    }
    text = "\n".join(PYTHON)
    for written, ours in stand_ins.items():
        assert written in text
        text = text.replace(written, str(ours))
    config = replace(toy.student_run(folder), run_dir=str(run_dir), train=replace(toy.TRAIN, steps=2))
    run_dir.mkdir()
    trainer = nemo_toy.trainer(config, [], enable_checkpointing=True)
    trainer.strategy.store = rendezvous()
    checkpoints = nl.ModelCheckpoint(save_last=True, save_top_k=0)
    names = {
        "Path": Path,
        "optim": nl.MegatronOptimizerModule(config=OptimizerConfig(optimizer="adam", lr=1e-3)),
        "trainer": trainer,
        "resume": None,
        "log": nl.NeMoLogger(explicit_log_dir=str(run_dir), ckpt=checkpoints),
    }
    exec(text, names)


def test_the_commands_run(tmp_path: Path) -> None:
    """The last one, for eight GPUs, does not start what it has built."""
    (block,) = bash_blocks(PAGE)
    for written, ours in {"max_steps=20": "max_steps=2", "path=DATA": "path=DATA --dryrun"}.items():
        assert written in block
        block = block.replace(written, ours)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "llama32_1b_from_qwen3_4b" in done.stdout
    assert "RestoreConfig(path='nemo/llama')" in done.stdout
    assert "fp8_recipe='tensorwise'" in done.stdout
    assert list((tmp_path / "tiny_cpu/checkpoints").glob("*-last"))
    assert not (tmp_path / "llama32_1b_from_qwen3_4b").exists()
