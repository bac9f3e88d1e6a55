"""Delayed scaling before it has scales: what its first step would lose, and the pass before it that keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.config import BalanceConfig, Fp8Config, RunConfig
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron import train_loop
from nemo_xtoken.integrations.megatron.step import Scales
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    return toy_folder


def run(folder: Path, name: str, *, delayed: bool = True, learn: bool = False) -> RunConfig:
    train = replace(toy.TRAIN, steps=1, checkpoint_interval=0)
    config = toy.student_run(folder, name, train=train, balance=BalanceConfig(mode="fixed"))
    teacher = replace(config.teachers[0], learn_projection=learn)
    optimizer = replace(config.optimizer, clip_grad=1e9, lr_warmup_steps=0)
    fp8 = Fp8Config(recipe="delayed", backend="emulate") if delayed else None
    return replace(config, fp8=fp8, teachers=(teacher,), optimizer=optimizer)


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def first_norm(config: RunConfig, function: Any = train_on_rank) -> float:
    """The norm of the first step's gradient."""
    Path(config.run_dir).mkdir()
    run_ranks(1, function, config, timeout=150)
    return toy.metrics(config)[0]["grad_norm"]


def without_calibration(config: RunConfig) -> None:
    train_loop.begins_with_scale_one = lambda training, step: False
    train_on_rank(config)


def as_a_mean(config: RunConfig) -> None:
    """The wrong variant: gradients of a mean over very many tokens instead of a sum, made good for afterwards."""
    right: Any = train_loop._scales  # type: ignore[reportPrivateUsage]

    def small(training: Any, counts: Any) -> Scales:
        scales = right(training, counts)
        return Scales(tuple(kd * 1e-7 for kd in scales.kd), scales.ce * 1e-7)

    train_loop._scales = small  # type: ignore[reportPrivateUsage]
    without_calibration(config)


def as_transformer_engine_does(config: RunConfig) -> None:
    """The pass before the first step rounds, with scale 1: what `backend: te` can do."""

    @contextmanager
    def rounding(models: Any) -> Iterator[None]:
        yield

    train_loop.calibrating = rounding  # type: ignore[assignment]
    train_on_rank(config)


def test_the_first_step_has_its_gradient(folder: Path) -> None:
    exact = first_norm(run(folder, "exact", delayed=False))
    assert first_norm(run(folder, "calibrated")) == pytest.approx(exact, rel=0.01)
    assert first_norm(run(folder, "rounding"), as_transformer_engine_does) == pytest.approx(exact, rel=0.01)
    lost = first_norm(run(folder, "mean"), as_a_mean) * 1e7
    assert lost < 0.95 * exact  # what is left is of the embedding, the norms and the head, which are not in FP8


def projection_gradients(config: RunConfig) -> list[float]:
    """Of the W that is trained, at each of its steps."""
    from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection

    seen: list[float] = []
    step = LearntProjection.step

    def noted(projection: LearntProjection, num_tokens: int) -> None:
        gradient = projection.parameters.grad
        assert gradient is not None
        seen.append(float(gradient.norm()) / num_tokens)
        step(projection, num_tokens)

    LearntProjection.step = noted  # type: ignore[method-assign]
    train_on_rank(config)
    return seen


def test_the_pass_before_the_first_step_leaves_nothing_in_the_gradient_of_w(folder: Path) -> None:
    gradients: list[float] = []
    for delayed in (False, True):
        config = run(folder, f"learnt_{delayed}", delayed=delayed, learn=True)
        Path(config.run_dir).mkdir()
        gradients += run_ranks(1, projection_gradients, config, timeout=150)[0]
    plain, rounded = gradients
    assert rounded == pytest.approx(plain, rel=0.1)  # it would be twice as much
    assert plain > 0


def test_transformer_engine_begins_with_such_a_pass_as_well(folder: Path) -> None:
    def begins(fp8: Fp8Config | None, step: int) -> bool:
        training: Any = type("Training", (), {"config": replace(run(folder, "none"), fp8=fp8), "models": []})()
        return train_loop.begins_with_scale_one(training, step)

    engine = Fp8Config(recipe="delayed")
    assert [begins(engine, step) for step in (1, 2)] == [True, False]
    assert not begins(Fp8Config(recipe="current"), 1)
    assert not begins(None, 1)
