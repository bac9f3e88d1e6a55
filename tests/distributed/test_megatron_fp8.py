"""Students in emulated FP8: what they learn, on one rank and on several, and what goes on after a checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.config import Fp8Config, ModelConfig, ParallelConfig, RunConfig
from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.fp8.formats import E4M3, LARGEST
from nemo_xtoken.integrations.megatron import fp8_layers, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint import TrainingState
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.student import build_student
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

TRAIN = replace(toy.TRAIN, steps=4, checkpoint_interval=0)
TP2 = ParallelConfig(tensor_model_parallel_size=2)
RECIPES = ("delayed", "current", "blockwise", "mxfp8")
BLOCK = {"delayed": 16, "current": 16, "blockwise": 128, "mxfp8": 32}
"""What a rank's part of every tensor is cut into, so that no layout moves a block."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    return toy_folder


def fp8(recipe: Any, **settings: Any) -> Fp8Config:
    return Fp8Config(recipe=recipe, backend="emulate", **settings)


def run(folder: Path, name: str, recipe: str | None, parallel: ParallelConfig | None = None, **train: Any) -> RunConfig:
    size = 2 * BLOCK[recipe or "current"]
    student = ModelConfig(
        num_layers=2, hidden_size=size, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=size
    )
    config = toy.student_run(folder, name, train=replace(TRAIN, **train), parallel=parallel)
    optimizer = replace(config.optimizer, lr=5e-4, min_lr=5e-5)  # so that one rounding does not grow into others
    return replace(config, student=student, optimizer=optimizer, fp8=None if recipe is None else fp8(recipe))


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def curve(config: RunConfig, function: Any = train_on_rank) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(config.parallel.world_size, function, config, timeout=150)
    return toy.metrics(config)


def losses(curve: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in curve]


STEPS_OF_EQUAL_ROUNDING = {"delayed": 2, "current": 2, "blockwise": 1, "mxfp8": 2}
"""Steps that round alike whatever the order of sums. In blocks of 128 it is those of equal weights: on some processors
a block of the second step lies on the edge of a power of two."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_tensor_parallel_ranks_are_one(folder: Path, recipe: str) -> None:
    alone, two = curve(run(folder, f"{recipe}_1", recipe)), curve(run(folder, f"{recipe}_2", recipe, TP2))
    norms = [[line["grad_norm"] for line in curve] for curve in (two, alone)]
    same = STEPS_OF_EQUAL_ROUNDING[recipe]
    assert losses(two)[:same] == pytest.approx(losses(alone)[:same], rel=1e-6)
    assert norms[0][:same] == pytest.approx(norms[1][:same], rel=1e-5)
    # Sums of another order move a block's largest value over a power of two now and then, and all of the block is
    # rounded anew: a rate that is 1e-6 larger changes the fourth loss of one rank alone by 4e-5, its norm by 4e-4.
    assert losses(two) == pytest.approx(losses(alone), rel=5e-4)
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)
    assert_same_record(recipe, same, *(record(folder / f"{recipe}_{size}") for size in (1, 2)))
    plain = curve(replace(run(folder, f"{recipe}_plain", recipe), fp8=None))
    assert losses(alone) == pytest.approx(losses(plain), rel=0.02)
    assert losses(alone) != pytest.approx(losses(plain), rel=1e-5)


def without_reduction(config: RunConfig) -> None:
    """The wrong variant: each rank takes the largest values of its own part."""
    fp8_layers.reduce_max = lambda amax, group: amax
    train_on_rank(config)


def record(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "fp8.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_record(recipe: str, same: int, alone: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for left, right in zip(alone, two, strict=True):
        near = 1e-4 if left["step"] <= same else 5e-2 if recipe == "blockwise" else 1e-2
        assert len(left["layers"]) == 8
        for layer, tensors in left["layers"].items():
            for tensor, numbers in tensors.items():
                assert numbers["amax"] > 0
                assert recipe != "delayed" or numbers["scale"] != 1  # with which it begins
                other = right["layers"][layer][tensor]
                if recipe == "blockwise":
                    # The power of two below the greatest that the largest value allows, on whose edge it may lie.
                    for side in (numbers, other):
                        assert side.pop("scale") == 2 ** math.floor(math.log2(LARGEST[E4M3] / side["amax"]))
                assert other == pytest.approx(numbers, rel=near, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["delayed", "current"])
def test_scales_of_each_rank_alone_would_be_others(folder: Path, recipe: str) -> None:
    right = curve(run(folder, f"{recipe}_right", recipe, TP2))
    wrong = curve(run(folder, f"{recipe}_wrong", recipe, TP2), without_reduction)
    assert losses(wrong) != pytest.approx(losses(right), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [
        replace(TP2, sequence_parallel=True),
        ParallelConfig(pipeline_model_parallel_size=2),
        ParallelConfig(context_parallel_size=2),
        ParallelConfig(data_parallel_size=2),
    ],
    ids=["tp2_sp", "pp2", "cp2", "dp2"],
)
def test_other_layouts_learn_the_same_with_delayed_scaling(folder: Path, parallel: ParallelConfig) -> None:
    """The largest values of a micro batch are over tp, cp and dp, and each pipeline stage has its own layers."""
    name = f"delayed_{parallel.pipeline_model_parallel_size}{parallel.context_parallel_size}"
    name += str(parallel.data_parallel_size)
    alone = curve(run(folder, f"{name}_alone", "delayed", steps=3))
    assert losses(curve(run(folder, name, "delayed", parallel, steps=3))) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.parametrize("parallel", [ParallelConfig(), TP2], ids=["tp1", "tp2"])
def test_a_run_goes_on_with_the_scales_of_its_checkpoint(folder: Path, parallel: ParallelConfig) -> None:
    ranks = parallel.world_size
    config = run(folder, f"whole_{ranks}", "delayed", parallel, checkpoint_interval=2)
    whole = curve(config)
    again, forgetful = (replace(config, run_dir=str(folder / f"{name}_{ranks}")) for name in ("again", "forgetful"))
    for stopped in (again, forgetful):
        shutil.copytree(config.run_dir, stopped.run_dir)
        shutil.rmtree(checkpoint_path(Path(stopped.run_dir), 4))
    assert curve(again) == whole
    wrong = curve(forgetful, with_scales_of_one)
    assert wrong[:2] == whole[:2]
    assert losses(wrong[2:]) != losses(whole[2:])


def with_scales_of_one(config: RunConfig) -> None:
    """The wrong variant: a resumed run begins with the scales of a new one."""
    resume = TrainingState.resume

    def forget(state: TrainingState) -> Any:
        position = resume(state)
        for model in state.models:
            for history in fp8_layers.histories_of(model):
                history.history().scale.fill_(1)
        return position

    TrainingState.resume = forget  # type: ignore[method-assign]
    train_on_rank(config)


def test_a_teacher_has_a_precision_of_its_own(folder: Path) -> None:
    plain = run(folder, "teacher_plain", "current", steps=3)
    teacher = replace(plain.teachers[0], fp8=fp8("mxfp8"))
    rounded = replace(plain, run_dir=str(folder / "teacher_rounded"), teachers=(teacher,))
    first, second = curve(plain)[0], curve(rounded)[0]
    assert second["ce"] == first["ce"]
    assert second["kd"] != first["kd"]
    assert second["kd"] == pytest.approx(first["kd"], rel=0.1)


def test_the_first_and_last_layers_stay_out_of_fp8_and_the_head_too(folder: Path) -> None:
    config = run(folder, "three", "current")
    config = replace(
        config,
        student=replace(config.student, num_layers=3),
        fp8=fp8("current", first_layers_in_bf16=1, last_layers_in_bf16=1),
    )
    (names,) = run_ranks(1, names_of_layers, config)
    parts = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
    assert names == sorted(f"layers.1.{part}" for part in parts)


def names_of_layers(config: RunConfig) -> list[str]:
    layout = layouts.start(config.parallel, "cpu", config.train.seed)
    (model,) = build_student(config, layout, 40)
    return sorted(fp8_layers.layers_of(model))


def test_the_backend_te_is_refused_where_it_would_train_without_fp8(folder: Path) -> None:
    config = replace(run(folder, "refused", None), fp8=Fp8Config(recipe="mxfp8"))
    with pytest.raises(UnavailableError, match=r"transformer-engine.*compute capability 10\.0 or higher"):
        run_ranks(1, train_on_rank, config)
    teacher = replace(config.teachers[0], fp8=Fp8Config(recipe="current"))
    with pytest.raises(UnavailableError, match="recipe current with backend te needs"):
        run_ranks(1, train_on_rank, replace(config, fp8=None, teachers=(teacher,)))
