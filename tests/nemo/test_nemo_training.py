"""NeMo's trainer against our own loop on megatron-core: same weights, same data, same curve, in every layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.config import LossConfig, ParallelConfig, RunConfig, TeacherLength
from nemo_xtoken.data import prepare
from nemo_xtoken.integrations.megatron import launch
from tests.distributed import toy
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks

pytestmark = pytest.mark.timeout(240)

STEPS = 20
TP2 = ParallelConfig(tensor_model_parallel_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W, a trained teacher, and the student's run by our own loop on one rank."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    launch(our_run(folder, "ours"))
    return folder


def our_run(folder: Path, name: str, **changes: Any) -> RunConfig:
    """The toy's student for 20 steps at a constant learning rate: NeMo has schedules of its own."""
    train = replace(toy.TRAIN, steps=changes.pop("steps", STEPS), checkpoint_interval=0)
    config = toy.student_run(folder, name, train=train, **changes)
    rate = config.optimizer.lr
    optimizer = replace(config.optimizer, lr_warmup_steps=0, lr_decay_style="constant", min_lr=rate)
    return replace(config, optimizer=optimizer)


def fit(
    config: RunConfig, data_changes: dict[str, Any], trainer_changes: dict[str, Any]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Train on this rank by NeMo."""
    nemo_toy.run_folder(config)
    curve = nemo_toy.Curve()
    trainer = nemo_toy.trainer(config, [curve], **trainer_changes)
    trainer.strategy.store = rendezvous()
    trainer.fit(nemo_toy.student_model(config), nemo_toy.data(config, **data_changes))
    return (curve.lines, curve.validation)


def nemo_curve(config: RunConfig) -> list[dict[str, float]]:
    """The curve of a run by NeMo, the same on every rank."""
    curves = [training for training, _ in run_nemo_ranks(config.parallel.world_size, fit, config, {}, {})]
    assert all(curve == curves[0] for curve in curves)
    return curves[0]


def assert_same_curve(
    ours: list[dict[str, float]],
    nemos: list[dict[str, float]],
    rel: float = 1e-5,
    also: tuple[str, ...] = ("teacher_entropy",),
) -> None:
    assert len(ours) == len(nemos) > 0
    for our, nemo in zip(ours, nemos, strict=True):
        for name in ("loss", "ce", "kd", "ratio", *also):
            assert nemo[name] == pytest.approx(our[name], rel=rel), (our["step"], name)


def test_nemo_on_one_rank_has_our_curve_bit_by_bit(folder: Path) -> None:
    ours = toy.metrics(our_run(folder, "ours"))
    nemos = nemo_curve(our_run(folder, "nemo"))
    assert_same_curve(ours, nemos, rel=0)
    assert ours[-1]["kd"] < 0.7 * ours[0]["kd"]


@pytest.mark.parametrize(
    "parallel",
    [
        TP2,
        replace(TP2, sequence_parallel=True),
        ParallelConfig(pipeline_model_parallel_size=2),
        ParallelConfig(context_parallel_size=2),
        ParallelConfig(data_parallel_size=2),
        ParallelConfig(data_parallel_size=2, use_distributed_optimizer=True),
    ],
    ids=["tp2", "tp2-sp", "pp2", "cp2", "dp2", "dp2-distributed-optimizer"],
)
def test_every_layout_has_our_curve(folder: Path, parallel: ParallelConfig) -> None:
    ours = toy.metrics(our_run(folder, "ours"))
    assert_same_curve(ours, nemo_curve(our_run(folder, "nemo", parallel=parallel)))


def with_two_teachers(folder: Path, name: str, **changes: Any) -> RunConfig:
    """One with bytes, whose W is trained, and one with the student's own tokenizer."""
    config = our_run(folder, name, steps=6, **changes)
    (teacher,) = config.teachers
    of_bytes = replace(teacher, name="bytes", weight=0.8, learn_projection=True, projection_lr=0.1)
    loss = LossConfig(mode="same_tokenizer")
    own = replace(teacher, name="own", checkpoint=str(folder / "own"), projection=None, weight=0.2, loss=loss)
    lengths = (TeacherLength(teacher="own", sequence_length=32),)
    data = replace(config.data, path=str(folder / "both"), teacher_lengths=lengths, validation_path=None)
    return replace(config, teachers=(of_bytes, own), data=data)


def test_two_teachers_and_a_trained_projection_have_our_curve(folder: Path) -> None:
    student = tokenizers.load(toy.student_spec(folder))
    prepare([folder / "sums.jsonl"], folder / "both", student, {"bytes": tokenizers.load("bytes"), "own": student})
    launch(replace(our_run(folder, "own", steps=6), student=toy.TEACHER, teachers=()))
    launch(with_two_teachers(folder, "ours_both", parallel=TP2))
    ours = toy.metrics(with_two_teachers(folder, "ours_both"))
    nemos = nemo_curve(with_two_teachers(folder, "nemo_both", parallel=TP2))
    assert_same_curve(ours, nemos, rel=1e-7, also=("kd/bytes", "kd/own", "teacher_entropy/own"))
    config = with_two_teachers(folder, "fixed")
    of_bytes, own = config.teachers
    launch(replace(config, teachers=(replace(of_bytes, learn_projection=False), own)))
    fixed = toy.metrics(config)[-1]["kd/bytes"]
    assert ours[-1]["kd/bytes"] != pytest.approx(fixed, rel=1e-3)
