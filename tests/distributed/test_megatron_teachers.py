"""Several teachers in one run: one of bytes, with a W that is trained, and one with the student's own tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken import tokenizers
from nemo_xtoken.config import (
    BalanceConfig,
    LossConfig,
    ParallelConfig,
    RunConfig,
    TeacherConfig,
    TeacherLength,
    TrainConfig,
)
from nemo_xtoken.config_io import save_run
from nemo_xtoken.data import prepare
from nemo_xtoken.errors import CheckpointError, ConfigError, DataError, ProjectionError
from nemo_xtoken.integrations.megatron import CacheJob, evaluate, fill_caches, launch, train_loop
from nemo_xtoken.integrations.megatron import checkpoint_files as files
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_weight, rows
from nemo_xtoken.integrations.megatron.learnt_projection import learnt_projection_path
from nemo_xtoken.integrations.megatron.progress import summary
from nemo_xtoken.integrations.megatron.setup import set_up
from nemo_xtoken.integrations.megatron.step import Scales, count_global_batch, with_total
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.losses.cross_entropy import cross_entropy
from nemo_xtoken.losses.projected_kl import projected_kl
from nemo_xtoken.projection import ProjectionMatrix, newest_automatic
from nemo_xtoken.teachers.cache import Storage
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.test_megatron_training import assert_same_curve, curve

FIXED = BalanceConfig(mode="fixed", kd_weight=4.0)
SHORT = replace(toy.TRAIN, steps=3)
TP2 = ParallelConfig(tensor_model_parallel_size=2)
LAYOUTS = {
    "tp2": TP2,
    "dp2": ParallelConfig(data_parallel_size=2, use_distributed_optimizer=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "cp2": ParallelConfig(context_parallel_size=2),
}
WEIGHTS = 0.8, 0.2
BYTES_LOSS, OWN_LOSS = LossConfig(one_to_one_only=True), LossConfig(mode="same_tokenizer")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data of both teachers, both trained, and the student's run on one rank."""
    student = tokenizers.load(toy.student_spec(toy_folder))
    teachers = {"bytes": tokenizers.load("bytes"), "own": student}
    for name in ("sums", "held_out"):
        prepare([toy_folder / f"{name}.jsonl"], toy_folder / f"{name}_both", student, teachers)
    own = replace(toy.student_run(toy_folder, "own_run", train=replace(toy.TRAIN, steps=10)), student=toy.TEACHER)
    launch(replace(own, teachers=()))
    launch(run(toy_folder, "alone"))
    return toy_folder


def run(
    folder: Path,
    name: str,
    *,
    train: TrainConfig = toy.TRAIN,
    parallel: ParallelConfig | None = None,
    balance: BalanceConfig | None = None,
) -> RunConfig:
    config = toy.student_run(folder, name, train=train, parallel=parallel, balance=balance)
    of_bytes = replace(config.teachers[0], name="bytes", weight=WEIGHTS[0], loss=BYTES_LOSS, learn_projection=True)
    own = TeacherConfig(
        name="own", model=toy.TEACHER, checkpoint=str(folder / "own_run"), weight=WEIGHTS[1], loss=OWN_LOSS
    )
    data = replace(
        config.data,
        path=str(folder / "sums_both"),
        validation_path=str(folder / "held_out_both"),
        teacher_lengths=(TeacherLength(teacher="own", sequence_length=32),),
    )
    return replace(config, teachers=(of_bytes, own), data=data)


def three(folder: Path, name: str, parallel: ParallelConfig | None = None) -> RunConfig:
    """With a third one, which has the tokens of the first and another loss."""
    config = run(folder, name, parallel=parallel)
    of_bytes, _ = config.teachers
    common = replace(of_bytes, name="common", weight=0.1, prepared_as="bytes", learn_projection=False)
    return replace(config, teachers=(*config.teachers, replace(common, loss=LossConfig(mode="h_kl", merge="first"))))


@pytest.fixture(scope="module")
def three_alone(folder: Path) -> list[dict[str, float]]:
    return curve(three(folder, "three_alone"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_curve(folder: Path, three_alone: list[dict[str, float]], name: str) -> None:
    alone = three_alone
    assert alone[-1]["ce"] < alone[0]["ce"]
    assert 0 < alone[0]["teacher_uncommon_mass/common"] < 1
    assert alone[0]["chunks/common"] > alone[0]["chunks/bytes"]
    for key in ("kd/bytes", "kd/own", "teacher_entropy/own", "chunks/own", "chunk_tokens/own"):
        assert alone[0][key] > 0
    assert_same_curve(curve(three(folder, name, LAYOUTS[name])), alone)
    learnt = [
        ProjectionMatrix.load(learnt_projection_path(files.checkpoint_path(folder / run_name, 6), "bytes")).weights
        for run_name in (name, "three_alone")
    ]
    assert learnt[0] == pytest.approx(learnt[1], abs=1e-5)


def test_remote_cached_and_colocated_teachers_in_one_run_give_the_same_curve(
    folder: Path, three_alone: list[dict[str, float]]
) -> None:
    config = three(folder, "mixed")
    of_bytes, own, common = config.teachers
    stored = fill_caches(config, CacheJob(storage=Storage(stored_as="fp32"), teachers=("own",)))
    assert stored is not None
    assert [filled.missing for filled in stored] == [0, 0]
    here = replace(common, parallel=LAYOUTS["dp2"], offload="both")
    mixed = replace(
        config,
        parallel=TP2,
        teachers=(replace(of_bytes, kind="remote", parallel=TP2), replace(own, kind="cached"), here),
    )
    assert mixed.world_size == 4
    launch(mixed)
    assert_same_curve(toy.metrics(mixed), three_alone)


def test_the_ratio_and_the_loss_are_of_the_weighted_sum(folder: Path) -> None:
    lines = toy.metrics(run(folder, "alone"))
    for line in lines:
        assert line["kd"] == pytest.approx(0.8 * line["kd/bytes"] + 0.2 * line["kd/own"], rel=1e-12)
        assert line["loss"] == pytest.approx(line["ratio"] * line["kd"] + line["ce"], rel=1e-5)
        assert line["chunks/own"] != line["chunks/bytes"]
        assert "chunks" not in line
    for before, line in pairwise(lines):
        assert line["ratio"] == pytest.approx(before["ce"] / before["kd"], rel=1e-12)
    assert lines[0]["ratio"] == pytest.approx(lines[0]["ce"] / lines[0]["kd"], rel=1e-5)


def gradients_of_a_step(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    micro_batches = next(training.batches())
    counts = count_global_batch(micro_batches, training.losses, training.layout)
    means = train_loop.run_micro_batches(training, micro_batches, Scales.of(counts, 4.0, 1.0), forward_only=False)
    student = unwrap(training.models[0])
    found = {name: p.main_grad.clone() for name, p in student.named_parameters()}  # type: ignore[attr-defined]
    (projection,) = training.objective.learnt_projections
    assert projection.parameters.grad is not None
    return {**found, "W": projection.parameters.grad / counts.tokens}, means


def gradients_by_hand(
    config: RunConfig, kd_weights: Sequence[float], ce_weight: float, one_count: bool
) -> tuple[dict[str, Tensor], float]:
    """From whole logits, a pure loss for each teacher, and torch's autograd."""
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    objective, student = training.objective, unwrap(training.models[0])
    named = Path(config.teachers[0].projection or ""), newest_automatic(Path(config.run_dir), 1)[0]
    matrices = [ProjectionMatrix.load(path) for path in named if path is not None]
    training.models[0].zero_grad_buffer()
    ce, tokens = torch.zeros(()), torch.zeros(())
    kd, chunks = [torch.zeros(()), torch.zeros(())], [torch.zeros(()), torch.zeros(())]
    for batch in next(training.batches()):
        inputs = model_inputs(batch.student_tokens, batch.student_position_ids, training.layout.groups.cp)
        logits = rows(student(*inputs)) @ head_weight(student).t()
        terms = cross_entropy(logits, batch, objective.vocab_size)
        ce, tokens = ce + terms.numerator, tokens + terms.denominator
        for i, (teacher, pair) in enumerate(zip(objective.teachers, batch.pairs, strict=True)):
            teacher_hidden = teacher.hidden(pair)
            assert isinstance(teacher_hidden, Tensor)
            teacher_logits = teacher_hidden @ head_weight(toy.model_of(teacher)).t()
            weights = teacher.projection_weights()
            terms = projected_kl(logits, teacher_logits, pair, matrices[i], teacher.loss, weights)
            kd[i], chunks[i] = kd[i] + terms.numerator, chunks[i] + terms.denominator
    assert chunks[0] != chunks[1]
    if one_count:
        chunks = [(chunks[0] + chunks[1]) / 2] * 2
    of_teachers = [weight * total / count for weight, total, count in zip(kd_weights, kd, chunks, strict=True)]
    loss = torch.stack(of_teachers).sum() + ce_weight * ce / tokens
    loss.backward()
    found = {name: p.main_grad.clone() for name, p in student.named_parameters()}  # type: ignore[attr-defined]
    (projection,) = objective.learnt_projections
    assert projection.parameters.grad is not None
    return {**found, "W": projection.parameters.grad.clone()}, float(loss)


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a)


def test_a_step_is_the_weighted_sum_of_the_losses_of_each_teacher(folder: Path) -> None:
    config = run(folder, "by_hand")
    Path(config.run_dir).mkdir(exist_ok=True)
    ((found, means),) = run_ranks(1, gradients_of_a_step, config)
    right = [4.0 * weight for weight in WEIGHTS]
    ((expected, loss),) = run_ranks(1, gradients_by_hand, config, right, 1.0, False)
    assert largest_difference(found, expected) < 2e-5
    assert means["loss"] == pytest.approx(loss, rel=1e-6)
    wrong: list[tuple[Any, ...]] = [
        ([4.0, 4.0], 1.0, False),
        ([4.0, 0.0], 1.0, False),
        (right, 2.0, False),
        (right, 1.0, True),
    ]
    for arguments in wrong:
        ((other, other_loss),) = run_ranks(1, gradients_by_hand, config, *arguments)
        assert largest_difference(found, other) > 1e-2
        assert abs(other_loss / loss - 1) > 1e-3


def twins(folder: Path, name: str, weights: Sequence[float]) -> RunConfig:
    """The toy's one teacher as often as there are weights."""
    config = toy.student_run(folder, name, train=SHORT, balance=FIXED)
    names = ("teacher", "twin")[: len(weights)]
    twin = config.teachers[0]
    teachers = [
        replace(twin, name=name, weight=weight, prepared_as="teacher")
        for name, weight in zip(names, weights, strict=True)
    ]
    return replace(config, teachers=tuple(teachers))


def test_two_half_teachers_are_one_whole_one(folder: Path) -> None:
    whole, halves, two = (
        curve(twins(folder, f"twins_{i}", weights)) for i, weights in enumerate(((1.0,), (0.5, 0.5), (1.0, 1.0)))
    )
    for one, half in zip(whole, halves, strict=True):
        for name in ("loss", "ce", "kd", "grad_norm", "lr", "ratio"):
            assert half[name] == pytest.approx(one[name], rel=1e-5)
        assert half["kd/twin"] == half["kd/teacher"]
        assert half["chunks/twin"] == one["chunks"]
    assert two[0]["kd"] == pytest.approx(2 * whole[0]["kd"], rel=1e-6)
    assert abs(two[0]["grad_norm"] / whole[0]["grad_norm"] - 1) > 0.1


def test_the_weight_of_a_single_teacher_counts(folder: Path) -> None:
    one, half = (curve(twins(folder, f"weighted_{i}", [weight])) for i, weight in enumerate((1.0, 0.5)))
    assert half[0]["kd"] == pytest.approx(0.5 * one[0]["kd"], rel=1e-6)
    assert half[0]["loss"] == pytest.approx(2 * one[0]["kd"] + one[0]["ce"], rel=1e-5)


def test_a_ratio_of_the_micro_batch_is_of_all_teachers(folder: Path) -> None:
    train = replace(SHORT, micro_batch_size=8)
    config = run(folder, "micro_batch", train=train, balance=BalanceConfig(mode="micro_batch"))
    for line in curve(config):
        assert line["loss"] == pytest.approx(2 * line["ce"], rel=1e-4)
        assert line["ratio"] == pytest.approx(line["ce"] / line["kd"], rel=1e-4)


def copy_of_alone(folder: Path, name: str) -> RunConfig:
    """A run directory of its own with the checkpoint after step 4 of six."""
    config = run(folder, name)
    shutil.copytree(folder / "alone", config.run_dir, dirs_exist_ok=True)
    shutil.rmtree(files.checkpoint_path(Path(config.run_dir), toy.TRAIN.steps))
    return config


def test_a_run_with_two_teachers_goes_on_where_it_was(folder: Path) -> None:
    config = copy_of_alone(folder, "resumed")
    launch(config)
    assert toy.metrics(config) == toy.metrics(run(folder, "alone"))


def test_another_checkpoint_of_one_of_the_teachers_is_noticed(folder: Path) -> None:
    config = copy_of_alone(folder, "other_teacher")
    bytes_teacher, own = config.teachers
    copy = folder / "own_trained_on"
    shutil.copytree(own.checkpoint, copy)
    files.checkpoint_path(copy, 10).rename(files.checkpoint_path(copy, 11))
    moved = replace(config, teachers=(bytes_teacher, replace(own, checkpoint=str(copy))))
    save_run(moved, Path(config.run_dir) / "config.yaml")
    with pytest.raises(CheckpointError, match=r"was started with another teacher checkpoint of own \("):
        launch(moved)


def test_evaluation_and_validation_know_all_teachers(folder: Path) -> None:
    assert evaluate(folder / "alone", folder / "held_out_both")["bits_per_byte"] > 0
    assert evaluate(folder / "alone", folder / "held_out")["bits_per_byte"] > 0
    train = replace(SHORT, validation_interval=3, validation_batches=1)
    line = curve(run(folder, "validated", train=train))[-1]
    total = 0.8 * line["validation_kd/bytes"] + 0.2 * line["validation_kd/own"]
    assert line["validation_kd"] == pytest.approx(total, rel=1e-12)


def test_teachers_that_the_data_does_not_have_are_named(folder: Path) -> None:
    config = run(folder, "refused", train=SHORT)
    of_bytes, own = config.teachers

    def check(*teachers: TeacherConfig, **data: Any) -> None:
        curve(replace(config, teachers=teachers, data=replace(config.data, **data)))

    with pytest.raises(DataError, match=r"has no teacher 'qwen', it was prepared with bytes, own; .* teachers.1.prep"):
        check(of_bytes, replace(own, name="qwen"))
    with pytest.raises(DataError, match=r"no teacher 'qwen', .* --teacher qwen=SPEC, or say .* teachers.0.prepared_as"):
        check(replace(of_bytes, prepared_as="qwen"))
    with pytest.raises(DataError, match="has no teacher 'own', it was prepared with teacher"):
        check(replace(of_bytes, prepared_as="teacher"), own, path=str(folder / "pair"), teacher_lengths=())
    with pytest.raises(
        ConfigError, match=r"data.teacher_lengths.0 is of 'Own', but the data was prepared with bytes, own"
    ):
        check(of_bytes, own, teacher_lengths=(TeacherLength(teacher="Own", sequence_length=32),))
    odd = replace(config.data, teacher_lengths=(TeacherLength(teacher="own", sequence_length=33),))
    with pytest.raises(ConfigError, match=r"the length of own in data.teacher_lengths 33 must be divisible by 4"):
        curve(replace(config, parallel=LAYOUTS["cp2"], data=odd))
    with pytest.raises(ProjectionError, match="teacher"):
        check(replace(of_bytes, prepared_as="own"), replace(own, prepared_as="bytes"))


def test_names_of_teachers_and_of_their_lengths_are_given_once(folder: Path) -> None:
    config = run(folder, "named")
    of_bytes, own = config.teachers
    with pytest.raises(ConfigError, match=r"a name of its own for each, got own, own; set teachers.1.name"):
        replace(config, teachers=(replace(of_bytes, name="own"), own))
    length = TeacherLength(teacher="own", sequence_length=32)
    with pytest.raises(ConfigError, match="teacher_lengths names a teacher twice: own, own"):
        replace(config.data, teacher_lengths=(length, length))
    with pytest.raises(ConfigError, match="sequence_length of own must be at least 2, got 1"):
        replace(config.data, teacher_lengths=(replace(length, sequence_length=1),))
    assert (config.data.teacher_length("own"), config.data.teacher_length("bytes")) == (32, 48)


def test_a_teacher_without_a_chunk_has_no_part_in_the_sum(folder: Path) -> None:
    teachers = run(folder, "sum").teachers
    means = {"loss": 1.0, "ce": 2.0, "kd/bytes": 3.0, "top_1_agreement/bytes": 0.5, "kd/own": None}
    found = with_total(means, teachers)
    assert found["kd"] == pytest.approx(0.8 * 3)
    assert list(found)[:3] == ["loss", "ce", "kd"]
    assert with_total({**means, "kd/bytes": None}, teachers)["kd"] is None
    assert with_total({"loss": 1.0, "ce": 2.0}, ()) == {"loss": 1.0, "ce": 2.0}


def test_the_progress_line_has_the_loss_of_each_teacher_and_no_more() -> None:
    line = {"step": 3, "loss": 2.0, "kd": 1.0, "kd/own": 0.5, "top_1_agreement/own": 0.5, "chunks/own": 7}
    assert summary({**line, "tokens_per_second": 9.0}) == "loss 2.0000  kd 1.0000  kd/own 0.5000  9 tokens/s"
