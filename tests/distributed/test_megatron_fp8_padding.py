"""Sequences that are no multiple of what FP8 multiplies: padded on each side, with nothing changed by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_xtoken.config import Fp8Config, ParallelConfig, RunConfig
from nemo_xtoken.data import padding
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import fp8_layers, setup, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.types import DistillBatch
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

TP2 = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
LAYOUTS = {"one": ParallelConfig(), "tp2_sp": TP2, "cp2": ParallelConfig(context_parallel_size=2)}
LENGTHS = {"student_sequence_length": 28, "teacher_sequence_length": 44}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    return toy_folder


def run(folder: Path, name: str, parallel: ParallelConfig, fp8: Fp8Config | None = None) -> RunConfig:
    """One sequence in a micro batch, of lengths that divide by nothing larger than 4."""
    train = replace(toy.TRAIN, steps=3, micro_batch_size=1, global_batch_size=2, checkpoint_interval=0)
    config = toy.student_run(folder, name, train=train, parallel=parallel)
    teacher = replace(config.teachers[0], fp8=fp8)
    return replace(config, data=replace(config.data, **LENGTHS), fp8=fp8, teachers=(teacher,))


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def padded_on_rank(config: RunConfig) -> None:
    """In fp32, padded as for MXFP8; with sequences that are longer indeed."""
    lengths: list[tuple[int, int]] = []

    def noted(batch: DistillBatch, config: RunConfig) -> DistillBatch:
        longer = padding.padded_for_fp8(batch, config)
        lengths.append((longer.student_tokens.shape[1], longer.teacher_tokens.shape[1]))
        return longer

    padding.token_multiple = lambda fp8: 32
    setup.padded_for_fp8 = noted
    train_on_rank(config)
    assert set(lengths) == {(32 * config.parallel.world_size, 64)}


def unpadded_on_rank(config: RunConfig) -> None:
    """The wrong variant."""
    setup.padded_for_fp8 = lambda batch, config: batch
    train_on_rank(config)


def rounded_on_rank(config: RunConfig) -> list[int]:
    """The numbers of tokens that the linear layers of student and teacher were given."""
    seen: list[int] = []
    check = fp8_layers.Fp8State.check_tokens

    def noted(state: fp8_layers.Fp8State, x: object) -> None:
        seen.append(x.numel() // x.shape[-1])  # type: ignore[attr-defined]
        check(state, x)  # type: ignore[arg-type]

    fp8_layers.Fp8State.check_tokens = noted  # type: ignore[method-assign, assignment]
    train_on_rank(config)
    return seen


def curve(config: RunConfig, function: object = train_on_rank) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(config.parallel.world_size, function, config, timeout=150)  # type: ignore[arg-type]
    return toy.metrics(config)


@pytest.mark.parametrize("name", LAYOUTS)
def test_padding_changes_nothing(folder: Path, name: str) -> None:
    plain = curve(run(folder, f"{name}_plain", LAYOUTS[name]))
    longer = curve(run(folder, f"{name}_padded", LAYOUTS[name]), padded_on_rank)
    assert len(plain) == 3
    for left, right in zip(plain, longer, strict=True):
        assert right == pytest.approx(left, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("recipe", "multiple"), [("current", 16), ("mxfp8", 32)])
@pytest.mark.parametrize("name", ["one", "tp2_sp"])
def test_linear_layers_see_multiples(folder: Path, name: str, recipe: str, multiple: int) -> None:
    fp8 = Fp8Config(recipe=recipe, backend="emulate")  # type: ignore[arg-type]
    config = run(folder, f"{name}_{recipe}", LAYOUTS[name], fp8)
    Path(config.run_dir).mkdir()
    for seen in run_ranks(config.parallel.world_size, rounded_on_rank, config, timeout=150):
        assert len(seen) > 20
        assert {tokens % multiple for tokens in seen} == {0}
    with pytest.raises(ConfigError, match=f"a multiple of {multiple} tokens of a rank, got"):
        run_ranks(config.parallel.world_size, unpadded_on_rank, replace(config, run_dir=str(folder)), timeout=150)


def test_a_teacher_that_is_not_padded_is_refused(folder: Path) -> None:
    config = run(folder, "own", ParallelConfig())
    teacher = replace(config.teachers[0], parallel=ParallelConfig(), fp8=Fp8Config(recipe="mxfp8", backend="emulate"))
    with pytest.raises(ConfigError, match=r"teacher_sequence_length 44 .* no multiple of 32.*set it to 64"):
        run_ranks(1, train_on_rank, replace(config, teachers=(teacher,)))
