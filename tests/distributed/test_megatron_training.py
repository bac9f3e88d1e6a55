"""Training on real megatron-core: what a step computes, what it refuses, and what if tp ranks were counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nemo_xtoken.config import BalanceConfig, ParallelConfig, RunConfig
from nemo_xtoken.errors import CheckpointError, ConfigError, DataError
from nemo_xtoken.integrations.megatron import launch, step, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.setup import set_up
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

TP2 = ParallelConfig(tensor_model_parallel_size=2)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, and the student's run on one rank."""
    launch(toy.student_run(toy_folder, "alone"))
    return toy_folder


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def curve(config: RunConfig, function: Any = train_on_rank) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(config.parallel.world_size, function, config)
    return toy.metrics(config)


def assert_same_curve(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_micro_batch_size_does_not_change_the_curve(folder: Path) -> None:
    small = replace(toy.TRAIN, micro_batch_size=1)
    alone = toy.metrics(toy.student_run(folder, "alone"))
    assert_same_curve(curve(toy.student_run(folder, "small_micro_batches", train=small)), alone)


def test_each_step_logs_the_most_memory_so_far(folder: Path) -> None:
    lines = (folder / "alone" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    memory = [json.loads(line)["memory_mib"] for line in lines]
    assert 50 < memory[0] < 20_000, "MiB of a process that has loaded torch"
    assert memory == sorted(memory)


@contextmanager
def counting_tp_ranks() -> Iterator[None]:
    """The mistake of taking the chunk count over all ranks: every tp rank counts the same chunks once more."""
    right = step.count_global_batch

    def wrong(micro_batches: Any, losses: Any, layout: Any) -> step.Counts:
        counts = right(micro_batches, losses, layout)
        return step.Counts(tuple(n * layout.groups.tp.size() for n in counts.chunks), counts.tokens)

    train_loop.count_global_batch = wrong
    try:
        yield
    finally:
        train_loop.count_global_batch = right


def train_with_tp_ranks_counted(config: RunConfig) -> None:
    with counting_tp_ranks():
        train_on_rank(config)


def test_counting_tp_ranks_in_the_denominator_gives_another_curve(folder: Path) -> None:
    fixed = BalanceConfig(mode="fixed", kd_weight=4.0)
    alone = curve(toy.student_run(folder, "fixed_alone", balance=fixed))
    right = curve(toy.student_run(folder, "fixed_tp2", parallel=TP2, balance=fixed))
    wrong_config = toy.student_run(folder, "fixed_tp2_wrong", parallel=TP2, balance=fixed)
    wrong = curve(wrong_config, train_with_tp_ranks_counted)
    assert_same_curve(right, alone)
    first, first_wrong = alone[0], wrong[0]
    assert first["loss"] == pytest.approx(4 * first["kd"] + first["ce"], rel=1e-5)
    assert first_wrong["loss"] == pytest.approx(2 * first["kd"] + first["ce"], rel=1e-5)
    assert abs(wrong[-1]["kd"] / alone[-1]["kd"] - 1) > 1e-3


def test_the_dynamic_ratio_is_that_of_the_step_before(folder: Path) -> None:
    lines = toy.metrics(toy.student_run(folder, "alone"))
    assert lines[0]["ratio"] == pytest.approx(lines[0]["ce"] / lines[0]["kd"], rel=1e-5)
    for before, line in pairwise(lines):
        assert line["ratio"] == pytest.approx(before["ce"] / before["kd"], rel=1e-12)
        assert line["loss"] == pytest.approx(line["ratio"] * line["kd"] + line["ce"], rel=1e-5)


def test_the_micro_batch_ratio_doubles_the_cross_entropy(folder: Path) -> None:
    train = replace(toy.TRAIN, micro_batch_size=8, steps=3)
    lines = curve(toy.student_run(folder, "micro_batch", train=train, balance=BalanceConfig(mode="micro_batch")))
    for line in lines:
        assert line["loss"] == pytest.approx(2 * line["ce"], rel=1e-4)


def test_a_global_batch_without_a_chunk_has_no_distillation_term() -> None:
    scales = step.Scales.of(step.Counts(chunks=(0, 4), tokens=12), kd_weight=3.0, ce_weight=1.0)
    assert scales == step.Scales((0.0, 9.0), 1.0)


def what_is_trained_and_saved(config: RunConfig) -> tuple[int, int, list[str]]:
    from megatron.core import dist_checkpointing

    layout = layouts.start(config.parallel, "cpu", config.train.seed)
    training = set_up(config, layout)
    (teacher,) = training.objective.teachers
    teacher_parameters = {id(p) for p in toy.model_of(teacher).parameters()}
    optimized = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert not toy.model_of(teacher).training
    saved = dist_checkpointing.load_tensors_metadata(str(checkpoint_path(Path(config.run_dir), config.train.steps)))
    return len(optimized), len(optimized & teacher_parameters), sorted(saved)


def test_the_teacher_is_neither_optimized_nor_saved(folder: Path) -> None:
    ((optimized, of_the_teacher, saved),) = run_ranks(1, what_is_trained_and_saved, toy.student_run(folder, "alone"))
    assert optimized == 15
    assert of_the_teacher == 0
    assert not [name for name in saved if "teacher" in name]
    assert len([name for name in saved if not name.startswith(("optimizer", "random"))]) < optimized


def test_validation_is_part_of_the_curve(folder: Path) -> None:
    train = replace(toy.TRAIN, steps=3, validation_interval=2, validation_batches=1)
    lines = curve(toy.student_run(folder, "validated", train=train))
    assert "validation_ce" not in lines[0]
    assert lines[1]["validation_ce"] > 0
    assert lines[1]["validation_kd"] > 0


def test_a_teacher_of_another_shape_is_one_clear_error(folder: Path) -> None:
    config = toy.student_run(folder, "misfit")
    (teacher,) = config.teachers
    wide = replace(teacher, model=replace(toy.TEACHER, hidden_size=32))
    with pytest.raises(CheckpointError, match=r"teacher 'teacher': checkpoint .* is of another model: .* should be"):
        curve(replace(config, teachers=(wide,)))
    student = replace(teacher, checkpoint=str(folder / "alone"), model=toy.STUDENT)
    with pytest.raises(
        CheckpointError, match="it has 323 token ids and not 259; it was trained with another tokenizer"
    ):
        curve(replace(config, teachers=(student,)))
    missing = replace(teacher, checkpoint=str(folder / "nowhere"))
    with pytest.raises(CheckpointError, match=r"expected a run directory with a complete checkpoint at .*nowhere"):
        curve(replace(config, teachers=(missing,)))


def test_data_and_config_that_do_not_belong_together_are_refused(folder: Path) -> None:
    config = toy.student_run(folder, "refused")
    with pytest.raises(DataError, match="was prepared without a teacher"):
        curve(replace(config, data=replace(config.data, path=str(folder / "teacher_alone"))))
    with pytest.raises(DataError, match="was not prepared with the student tokenizer"):
        curve(replace(config, data=replace(config.data, validation_path=str(folder / "teacher_alone"))))
    with pytest.raises(ConfigError, match=r"student.vocab_size 100 is less than the 323 ids"):
        curve(replace(config, student=replace(config.student, vocab_size=100)))
    odd = replace(config.data, teacher_sequence_length=47)
    with pytest.raises(ConfigError, match="teacher_sequence_length 47 must be divisible"):
        curve(replace(config, parallel=replace(TP2, sequence_parallel=True), data=odd))


def test_bf16_trains(folder: Path) -> None:
    lines = curve(toy.student_run(folder, "bf16", train=replace(toy.TRAIN, bf16=True)))
    reference = toy.metrics(toy.student_run(folder, "alone"))
    assert lines[-1]["ce"] == pytest.approx(reference[-1]["ce"], rel=2e-2)


def test_the_ranks_see_torch_deterministic(folder: Path) -> None:
    def deterministic() -> bool:
        layouts.start(ParallelConfig(), "cpu", seed=1)
        return torch.are_deterministic_algorithms_enabled() and dist.is_initialized()

    assert run_ranks(1, deterministic) == [True]


def test_a_run_that_names_no_projection_builds_its_own_and_goes_on_with_it(folder: Path) -> None:
    config = toy.student_run(folder, "own_projection", parallel=TP2, train=replace(toy.TRAIN, steps=3))
    config = replace(config, teachers=(replace(config.teachers[0], projection=None),))
    curve(config)
    (built,) = Path(config.run_dir).glob("projection-*.safetensors")
    assert built.read_bytes() == (folder / "projection.safetensors").read_bytes()
    before = built.stat().st_mtime_ns
    lines = curve(replace(config, train=replace(toy.TRAIN, steps=4)))
    assert built.stat().st_mtime_ns == before
    assert_same_curve(lines[:1], toy.metrics(toy.student_run(folder, "alone"))[:1])
