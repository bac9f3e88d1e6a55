"""The Python of docs/nemo.md runs, with tiny models, data and a trainer in the place of a user's."""

from __future__ import annotations

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
from tests.documents import CHECKOUT, blocks, with_stand_ins
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
    text = with_stand_ins("\n".join(PYTHON), stand_ins)
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
