"""Distillation inside Bridge's `pretrain`: the curve of our own loop, in every layout, and what would change it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_xtoken.config import BalanceConfig, LossConfig
from nemo_xtoken.data import PreparedData
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge import step as bridge_step
from nemo_xtoken.integrations.bridge.config import BridgeTeacher
from nemo_xtoken.integrations.bridge.step import DistillationStep
from nemo_xtoken.integrations.megatron.step import Counts
from tests.bridge import own_loop, tiny
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

Lines = list[dict[str, float]]
COMPARED = ("loss", "ce", "kd", "ratio", "grad_norm", "teacher_entropy")


@pytest.fixture(scope="module")
def own(folder: Path) -> Lines:
    """The curve of our own loop."""
    return run_own(folder, tiny.STEPS)


def run_own(folder: Path, steps: int, loss: LossConfig | None = None, teacher: str = "qwen3") -> Lines:
    projection = str(folder / "projection.safetensors")
    one = BridgeTeacher(model=str(folder / teacher), projection=projection, loss=loss or LossConfig())
    return run_ranks(1, own_loop.curve, folder, steps, [one], timeout=150)[0]


def assert_same(lines: Lines, expected: Lines) -> None:
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for name in COMPARED:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name


def test_the_data_is_what_distillation_is_about(folder: Path) -> None:
    prepared = PreparedData.open(folder / "data")
    tables = [prepared.teachers[0].chunk_table(i) for i in range(100)]
    assert any((table[:, 3] - table[:, 2] > 1).any() for table in tables), "no chunk has two teacher tokens"
    assert prepared.manifest.student.vocab_size == 330
    assert prepared.manifest.teacher is not None
    assert prepared.manifest.teacher.vocab_size != prepared.manifest.student.vocab_size


def test_the_curve_is_that_of_our_own_loop(curve: Lines, own: Lines) -> None:
    assert_same(curve, own)
    assert curve[-1]["ce"] < 0.8 * curve[0]["ce"]


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}, {"dp": 2}], ids=["tp2", "pp2", "dp2"])
def test_the_curve_does_not_depend_on_the_layout(folder: Path, own: Lines, layout: dict[str, int]) -> None:
    name = "_".join(f"{key}{value}" for key, value in layout.items())
    assert_same(tiny.run(folder, name, **layout), own)


def use_distributed_optimizer(config: Any) -> None:
    config.optimizer.use_distributed_optimizer = config.ddp.use_distributed_optimizer = True


LAYOUTS: dict[str, dict[str, Any]] = {
    "sequence_parallel": {"tp": 2, "model": {"sequence_parallel": True}},
    "cp2": {"dp": 2, "model": {"context_parallel_size": 2}},
    "distributed_optimizer": {"dp": 2, "change": use_distributed_optimizer},
    "recompute": {"model": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_bridges_other_ways_to_train_give_the_same_curve(folder: Path, own: Lines, name: str) -> None:
    assert_same(tiny.run(folder, name, steps=3, **LAYOUTS[name]), own[:3])


def test_tied_embeddings_in_every_layout(folder: Path, own: Lines) -> None:
    alone = tiny.run(folder, "tied_alone", steps=3, student="tied")
    assert abs(alone[0]["loss"] / own[0]["loss"] - 1) > 1e-3
    assert_same(tiny.run(folder, "tied_tp2", steps=3, student="tied", tp=2), alone)
    assert_same(tiny.run(folder, "tied_pp2", steps=3, student="tied", pp=2), alone)


def use_bf16(config: Any) -> None:
    config.mixed_precision = "bf16_mixed"


def test_bf16_trains(folder: Path, own: Lines) -> None:
    lines = tiny.run(folder, "bf16", steps=3, change=use_bf16, tp=2)
    for line, other in zip(lines, own[:3], strict=True):
        assert line["ce"] == pytest.approx(other["ce"], rel=1e-2)
        assert line["kd"] == pytest.approx(other["kd"], rel=3e-2)
    assert lines[0]["ce"] != own[0]["ce"]


def test_a_qwen2_teacher_and_another_loss(folder: Path) -> None:
    loss = LossConfig(mode="h_kl", temperature=2.0)
    lines = tiny.run(folder, "h_kl", steps=3, teacher="qwen2", loss=loss)
    assert_same(lines, run_own(folder, 3, loss, "qwen2"))
    p_kl = tiny.run(folder, "p_kl", steps=3, teacher="qwen2")
    assert abs(p_kl[0]["kd"] / lines[0]["kd"] - 1) > 0.01


def test_the_ratio_is_that_of_the_step_before(curve: Lines) -> None:
    assert curve[0]["ratio"] == pytest.approx(curve[0]["ce"] / curve[0]["kd"], rel=1e-5)
    for before, line in pairwise(curve):
        assert line["ratio"] == pytest.approx(before["ce"] / before["kd"], rel=1e-5)
        assert line["loss"] == pytest.approx(line["ratio"] * line["kd"] + line["ce"], rel=1e-5)


def test_without_a_teacher_it_is_cross_entropy(folder: Path) -> None:
    lines = tiny.run(folder, "alone", steps=3, teacher=None)
    assert all(line["loss"] == pytest.approx(line["ce"], rel=1e-6) for line in lines)
    assert "kd" not in lines[0]


def train_with_tp_ranks_counted(folder: Path, name: str) -> Lines:
    right: Any = bridge_step.count_global_batch

    def wrong(micro_batches: Any, loss: Any, layout: Any) -> Counts:
        counts = right(micro_batches, loss, layout)
        return Counts(tuple(chunks * layout.groups.tp.size() for chunks in counts.chunks), counts.tokens)

    bridge_step.count_global_batch = wrong
    return tiny.distil(tiny.config(folder, name, tp=2, steps=2, balance=BalanceConfig(mode="fixed", kd_weight=3.0)))


def test_counting_tp_ranks_in_the_denominator_gives_another_loss(folder: Path) -> None:
    wrong = run_ranks(2, train_with_tp_ranks_counted, folder, "wrong", timeout=150)[-1][0]
    assert wrong["loss"] == pytest.approx(1.5 * wrong["kd"] + wrong["ce"], rel=1e-5)


def train_without_marks(folder: Path, name: str) -> Lines:
    config = tiny.config(folder, name, tp=2, steps=1)
    step = DistillationStep(config)
    config.model.perform_initialization = False  # as Bridge's import leaves it
    curve = tiny.Curve()
    tiny.bridge_pretrain(config, step, callbacks=[tiny.BalanceCallback(step), curve])
    return curve.lines


def test_an_import_alone_would_count_a_part_of_the_gradient_in_its_norm(folder: Path, own: Lines) -> None:
    (line,) = run_ranks(2, train_without_marks, folder, "without_marks", timeout=150)[-1]
    assert line["loss"] == pytest.approx(own[0]["loss"], rel=1e-5)
    assert line["grad_norm"] < 0.95 * own[0]["grad_norm"]


def test_validation_reports_the_same_losses_each_time(folder: Path) -> None:
    train = {"eval_iters": 2, "eval_interval": 1}
    once, twice = run_ranks(1, validate_twice, folder, "validated", train, timeout=150)[0]
    assert once["kd"] > 0
    assert once == twice


def validate_twice(folder: Path, name: str, train: dict[str, Any]) -> Lines:
    config = tiny.config(folder, name, steps=2, train=train)
    config.optimizer.lr = config.optimizer.min_lr = 1e-30
    losses = tiny.Validation()
    tiny.pretrain(config, [losses])
    return losses.lines[:2]


def test_pretrain_without_the_callback_is_refused(folder: Path) -> None:
    def on_rank() -> None:
        config = tiny.config(folder, "no_callback", steps=1)
        tiny.bridge_pretrain(config, DistillationStep(config))

    with pytest.raises(ConfigError, match="callbacks="):
        run_ranks(1, on_rank)


def test_a_loss_that_is_not_a_number_ends_the_run(folder: Path) -> None:
    def on_rank() -> None:
        config = tiny.config(folder, "lost", steps=3)

        def spoil(models: list[Any]) -> list[Any]:
            with torch.no_grad():
                models[0].embedding.word_embeddings.weight.fill_(float("inf"))
            return models

        step = DistillationStep(config)
        config.model.register_pre_wrap_hook(spoil)
        config.rerun_state_machine.check_for_nan_in_loss = False
        tiny.bridge_pretrain(config, step, callbacks=[tiny.BalanceCallback(step)])

    with pytest.raises(Exception, match=r"loss is nan at step 1|finite"):
        run_ranks(1, on_rank)
