"""Ten steps of the same model in every layout: one loss curve, and another one if cp ranks were counted twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_xtoken.config import BalanceConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from nemo_xtoken.data.batches import GlobalBatches
from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import launch, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.progress import summary
from nemo_xtoken.integrations.megatron.run_dir import adopt_config
from nemo_xtoken.integrations.megatron.step import Objective, sum_reports
from nemo_xtoken.types import DistillBatch
from tests.distributed import toy
from tests.distributed.ranks import run_ranks

TRAIN = replace(toy.TRAIN, steps=10, checkpoint_interval=0)
MODELS = {
    "untied": toy.STUDENT,
    "tied": replace(toy.STUDENT, num_layers=4, share_embeddings_and_output_weights=True),
}

MICRO_BATCH = BalanceConfig(mode="micro_batch")

TP2 = ParallelConfig(tensor_model_parallel_size=2)
DP2 = ParallelConfig(data_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
LAYOUTS = {
    "tp2": ("untied", TP2),
    "tp2_sequence_parallel": ("untied", replace(TP2, sequence_parallel=True)),
    "dp2": ("untied", DP2),
    "dp2_distributed_optimizer": ("untied", replace(DP2, use_distributed_optimizer=True)),
    "pp2": ("untied", PP2),
    "cp2": ("untied", CP2),
    "cp4": ("untied", replace(CP2, context_parallel_size=4)),
    "tp2_pp2": ("untied", replace(TP2, pipeline_model_parallel_size=2)),
    "tp2_cp2": ("untied", replace(TP2, context_parallel_size=2)),
    "tp2_cp2_sequence_parallel": ("untied", replace(TP2, context_parallel_size=2, sequence_parallel=True)),
    "tied_tp2": ("tied", TP2),
    "tied_pp2": ("tied", PP2),
    "tied_pp2_interleaved": ("tied", replace(PP2, virtual_pipeline_model_parallel_size=2)),
    "tied_tp2_pp2_interleaved_sequence_parallel": (
        "tied",
        replace(TP2, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2, sequence_parallel=True),
    ),
    "tied_cp2_distributed_optimizer": ("tied", replace(CP2, use_distributed_optimizer=True)),
    "tied_tp2_pp2": ("tied", replace(TP2, pipeline_model_parallel_size=2, use_distributed_optimizer=True)),
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(toy_folder: Path) -> Path:
    """Data, W, a trained teacher, and the runs of both models on one rank."""
    for model in MODELS:
        launch(run(toy_folder, f"{model}_alone", model))
    return toy_folder


def run(
    folder: Path, name: str, model: str, parallel: ParallelConfig | None = None, train: TrainConfig = TRAIN
) -> RunConfig:
    return replace(toy.student_run(folder, name, train=train, parallel=parallel), student=MODELS[model])


def train_on_rank(config: RunConfig) -> None:
    train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))


def curve(config: RunConfig, function: Any = train_on_rank) -> list[dict[str, float]]:
    Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(config.parallel.world_size, function, config, timeout=150)
    return toy.metrics(config)


def assert_same_curve(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_curve(folder: Path, name: str) -> None:
    model, parallel = LAYOUTS[name]
    alone = toy.metrics(run(folder, f"{model}_alone", model))
    assert len(alone) == 10
    assert alone[-1]["ce"] < alone[0]["ce"] - 0.5
    assert alone[-1]["kd"] < alone[0]["kd"]
    assert_same_curve(curve(run(folder, name, model, parallel)), alone)


def test_the_ranks_of_these_runs_had_unequal_counts_and_sequences_of_unequal_length(folder: Path) -> None:
    data = toy.student_run(folder).data
    assert data.student_sequence_length != data.teacher_sequence_length
    dataset = PackedDataset(
        PreparedData.open(data.path), data.student_sequence_length, data.teacher_sequence_length, data.seed
    )
    ranks = [GlobalBatches(dataset, TRAIN.micro_batch_size, TRAIN.global_batch_size, rank, 2) for rank in range(2)]
    counts = [[sum(int(batch.student_loss_mask.sum()) for batch in next(rank)) for rank in ranks] for _ in range(10)]
    assert len([first for first, second in counts if first != second]) > 5


def test_a_run_goes_on_in_another_layout(folder: Path) -> None:
    alone = toy.metrics(run(folder, "tied_alone", "tied"))
    interleaved = replace(PP2, virtual_pipeline_model_parallel_size=2)
    for parallel in (interleaved, CP2, interleaved):
        train = replace(TRAIN, checkpoint_interval=5)
        config = run(folder, "moved", "tied", replace(parallel, use_distributed_optimizer=True), train)
        shutil.rmtree(checkpoint_path(Path(config.run_dir), TRAIN.steps), ignore_errors=True)
        assert_same_curve(curve(config), alone)


def test_a_run_that_goes_on_keeps_its_kind_of_optimizer(folder: Path, tmp_path: Path) -> None:
    config = replace(toy.student_run(folder), run_dir=str(tmp_path))
    adopt_config(config)
    adopt_config(replace(config, parallel=DP2))
    with pytest.raises(ConfigError, match=r"holds a run with another parallel.use_distributed_optimizer"):
        adopt_config(replace(config, parallel=replace(DP2, use_distributed_optimizer=True)))


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[Any]:
    right = getattr(owner, name)
    setattr(owner, name, value(right))
    try:
        yield
    finally:
        setattr(owner, name, right)


def train_with_tokens_counted_on_every_cp_rank(config: RunConfig) -> None:
    """The mistake of taking the whole batch's tokens as a cp rank's own."""

    def wrong(right: Any) -> Any:
        def loss_func(self: Objective, scales: Any, batch: DistillBatch, *args: Any) -> Any:
            loss, _, report = right(self, scales, batch, *args)
            return loss, batch.student_loss_mask.sum().int(), report

        return loss_func

    with patched(Objective, "loss_func", wrong):
        train_on_rank(config)


def test_counting_tokens_on_every_cp_rank_halves_the_gradient(folder: Path) -> None:
    alone = toy.metrics(run(folder, "untied_alone", "untied"))
    train = replace(TRAIN, steps=3)
    config = run(folder, "counted_twice", "untied", CP2, train)
    wrong = curve(config, train_with_tokens_counted_on_every_cp_rank)
    assert wrong[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    assert wrong[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"] / 2, rel=1e-4)


def with_few_chunks(batch: DistillBatch, in_all: bool) -> DistillBatch:
    """The batch with the chunks of the first quarter of each sequence only, or with none."""
    chunks, length = batch.chunks, batch.student_tokens.shape[1]
    kept = (chunks.student_start % length < length // 4) & in_all
    return replace(batch, chunks=chunks.masked(chunks.mask & kept))


def train_with_chunks_on_the_first_rank_alone(config: RunConfig) -> None:
    layout = layouts.start(config.parallel, "cpu", config.train.seed)
    dp = layout.groups.dp

    def few(right: Any) -> Any:
        def train_step(training: Any, step: int, batches: Sequence[DistillBatch]) -> Any:
            numbers = range(dp.rank(), dp.size() * len(batches), dp.size())
            kept = [with_few_chunks(batch, number == 0) for number, batch in zip(numbers, batches, strict=True)]
            return right(training, step, kept)

        return train_step

    with patched(train_loop, "train_step", few):
        train_loop.train(config, layout)


def test_ranks_without_a_valid_chunk_take_part(folder: Path) -> None:
    """Chunks of the first quarter of a sequence all belong to the first of two cp ranks."""
    train = replace(TRAIN, steps=3)
    alone, *others = (
        curve(run(folder, f"few_chunks_{i}", "untied", parallel, train), train_with_chunks_on_the_first_rank_alone)
        for i, parallel in enumerate((ParallelConfig(), DP2, CP2))
    )
    assert 0 < alone[0]["chunks"] < toy.metrics(run(folder, "untied_alone", "untied"))[0]["chunks"] / 4
    for other in others:
        assert_same_curve(other, alone)


def test_mass_on_uncommon_tokens_is_the_same_in_every_layout(folder: Path) -> None:
    layouts = (ParallelConfig(), replace(TP2, data_parallel_size=2), replace(PP2, context_parallel_size=2))
    configs = [run(folder, f"h_kl_{i}", "untied", parallel) for i, parallel in enumerate(layouts)]
    loss = replace(configs[0].teachers[0].loss, mode="h_kl")
    alone, *others = (curve(replace(c, teachers=(replace(c.teachers[0], loss=loss),))) for c in configs)
    for other in others:
        assert_same_curve(other, alone)
    first = alone[0]
    assert 0 < first["teacher_uncommon_mass"] < 0.01 < first["student_uncommon_mass"] < 1, (
        "bytes lack no student's byte"
    )
    assert "student_uncommon_mass" not in toy.metrics(run(folder, "untied_alone", "untied"))[0]


def test_the_ratio_of_a_micro_batch_is_over_all_its_cp_ranks(folder: Path) -> None:
    configs = [
        replace(run(folder, f"micro_batch_{i}", "untied", parallel, replace(TRAIN, steps=3)), balance=MICRO_BATCH)
        for i, parallel in enumerate((ParallelConfig(), CP2))
    ]
    alone, cut = (curve(config) for config in configs)
    assert_same_curve(cut, alone)


def sum_of_reports(parallel: ParallelConfig) -> dict[str, float | None]:
    layout = layouts.start(parallel, "cpu", seed=1)
    rank = layout.groups.dp_cp.rank()
    reports = [{"loss": torch.tensor([rank + 1.0, 2.0]), "teacher entropy": torch.zeros(2)}] * 2
    return sum_reports(reports if layout.is_last_stage else [], layout)


@pytest.mark.parametrize("parallel", [PP2, CP2, DP2])
def test_reports_are_summed_by_whatever_names_they_have(parallel: ParallelConfig) -> None:
    mean = 0.5 if parallel == PP2 else 0.75
    assert run_ranks(2, sum_of_reports, parallel) == [{"loss": mean, "teacher entropy": None}] * 2


def test_progress_shows_whatever_the_loss_reports() -> None:
    line = {"step": 3, "loss": 2.0, "top_1_agreement": 0.5, "lr": 0.1, "tokens_per_second": 1234.5}
    assert summary(line) == "loss 2.0000  top 1 agreement 0.5000  1,234 tokens/s"


def test_layouts_that_cannot_be_cut_are_refused(folder: Path) -> None:
    def check(parallel: ParallelConfig, model: ModelConfig = toy.STUDENT, **lengths: int) -> None:
        config = replace(toy.student_run(folder, "refused", parallel=parallel), student=model)
        curve(replace(config, data=replace(config.data, **lengths)))

    with pytest.raises(ConfigError, match=r"data.student_sequence_length 34 must be divisible by 4 with context_par"):
        check(CP2, student_sequence_length=34)
    with pytest.raises(ConfigError, match=r"num_layers 3 is not divisible by the 2 \(virtual\) pipeline stages"):
        check(PP2, replace(toy.STUDENT, num_layers=3))
    with pytest.raises(ConfigError, match="needs pipeline_model_parallel_size > 1"):
        ParallelConfig(virtual_pipeline_model_parallel_size=2)
    with pytest.raises(ConfigError, match="take turns at 2 micro batches, but a step has 1"):
        run(folder, "refused", "tied", LAYOUTS["tied_pp2_interleaved"][1], replace(TRAIN, micro_batch_size=8))
