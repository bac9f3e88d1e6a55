"""The backend `te` on a GPU: Transformer Engine's own FP8 products, by recipe. They have not run yet."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_xtoken.config import Fp8Config, ModelConfig
from nemo_xtoken.config_io import save_run
from nemo_xtoken.integrations.megatron.fp8_backend import RECIPES, missing
from tests.distributed import toy

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
HAS_CUDA = torch.cuda.device_count() > 0
STUDENT = ModelConfig(num_layers=2, hidden_size=256, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=256)


def curve(folder: Path, name: str, fp8: Fp8Config | None) -> list[float]:
    train = replace(toy.TRAIN, steps=10, micro_batch_size=4, bf16=True, checkpoint_interval=0)
    config = replace(toy.student_run(folder, name, train=train), student=STUDENT, fp8=fp8, device="cuda", teachers=())
    save_run(config, folder / f"{name}.yaml")
    # In a process of its own: this one answers for CUDA with the CPU.
    command = [sys.executable, "-c", "from nemo_xtoken.cli import main; main()", "train", str(folder / f"{name}.yaml")]
    subprocess.run(command, check=True, timeout=250)
    return [line["loss"] for line in toy.metrics(config)]


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("recipe", RECIPES)
def test_transformer_engine_learns_what_the_emulation_learns(tmp_path: Path, recipe: Any) -> None:
    lacks = missing(recipe, "cuda")
    if lacks:
        pytest.skip("; ".join(lacks))
    toy.make_data(tmp_path)
    engine = curve(tmp_path, "te", Fp8Config(recipe=recipe))
    emulated = curve(tmp_path, "emulated", Fp8Config(recipe=recipe, backend="emulate"))
    plain = curve(tmp_path, "bf16", None)
    assert engine == pytest.approx(emulated, rel=0.02)
    assert engine == pytest.approx(plain, rel=0.03)
    assert engine != plain
