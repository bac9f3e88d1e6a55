"""Students in emulated FP8: what they learn, on one rank and on several, and what goes on after a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.config import Fp8Config, ModelConfig, ParallelConfig, RunConfig
from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.integrations.megatron import fp8_layers, launch, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

TRAIN = replace(toy.TRAIN, steps=4, checkpoint_interval=0)
TP2 = ParallelConfig(tensor_model_parallel_size=2)
RECIPES = ("delayed", "current", "blockwise", "mxfp8")
BLOCK = {"delayed": 16, "current": 16, "blockwise": 128, "mxfp8": 32}
"""What a rank's part of every tensor is cut into, so that no layout moves a block."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    return folder


def fp8(recipe: Any, **settings: Any) -> Fp8Config:
    return Fp8Config(recipe=recipe, backend="emulate", **settings)


def run(folder: Path, name: str, recipe: str | None, parallel: ParallelConfig | None = None, **train: Any) -> RunConfig:
    size = 2 * BLOCK[recipe or "current"]
    student = ModelConfig(
        num_layers=2, hidden_size=size, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=size
    )
    config = toy.student_run(folder, name, train=replace(TRAIN, **train), parallel=parallel)
    return replace(config, student=student, fp8=None if recipe is None else fp8(recipe))


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def curve(config: RunConfig, function: Any = train_on_rank) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(config.parallel.world_size, function, config, timeout=150)
    return toy.metrics(config)


def losses(curve: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in curve]


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_tensor_parallel_ranks_are_one(folder: Path, recipe: str) -> None:
    alone, two = curve(run(folder, f"{recipe}_1", recipe)), curve(run(folder, f"{recipe}_2", recipe, TP2))
    assert losses(two) == pytest.approx(losses(alone), rel=1e-4)
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in alone], rel=2e-3)
    plain = curve(replace(run(folder, f"{recipe}_plain", recipe), fp8=None))
    assert losses(alone) == pytest.approx(losses(plain), rel=0.02)
    assert losses(alone) != pytest.approx(losses(plain), rel=1e-4)
