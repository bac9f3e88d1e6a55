"""A teacher on the student's ranks in a layout of its own: the curve of one in the student's, and what is offloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from nemo_xtoken import tokenizers
from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.integrations.megatron import CacheJob, fill_caches, launch, train_loop
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.own_layout_teacher import OwnLayoutSource
from nemo_xtoken.integrations.megatron.second_layout import SecondLayout
from nemo_xtoken.integrations.megatron.setup import set_up
from nemo_xtoken.planning.memory import Memory, OwnLayout, own_layout_memory
from nemo_xtoken.planning.shapes import Shape
from nemo_xtoken.teachers.cache import CacheReader, Storage, cache_directory
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.test_megatron_training import assert_same_curve

TEACHER = replace(toy.TEACHER, num_layers=2, num_attention_heads=4, num_query_groups=4)
TRAIN = replace(toy.TRAIN, steps=3, checkpoint_interval=0, validation_interval=2, validation_batches=1)


def layout(tp: int = 1, pp: int = 1, cp: int = 1, dp: int = 1, *, sp: bool = False) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        data_parallel_size=dp,
        sequence_parallel=sp,
    )


TWO_RANKS = {
    "tp2 under pp2": (layout(tp=2), layout(pp=2)),
    "pp2 under tp2": (layout(pp=2), layout(tp=2)),
    "dp2 under cp2": (layout(dp=2), layout(cp=2)),
    "cp2 under tp2 sp": (layout(cp=2), layout(tp=2, sp=True)),
}
FOUR_RANKS = {
    "tp4 under tp2 pp2": (layout(tp=4), layout(tp=2, pp=2)),
    "tp2 pp2 under dp4": (layout(tp=2, pp=2), layout(dp=4)),
    "tp1 dp4 under tp2 pp2": (layout(dp=4), layout(tp=2, pp=2)),
    "pp2 dp2 under tp2 dp2": (layout(pp=2, dp=2), layout(tp=2, dp=2)),
}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W, a trained teacher, and the student's run with the teacher on its one rank."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(replace(toy.teacher_run(folder), student=TEACHER))
    together(1, [run(folder, "alone", layout(), None)])
    return folder


def run(
    folder: Path, name: str, student: ParallelConfig, teacher: ParallelConfig | None, **of_teacher: Any
) -> RunConfig:
    config = toy.student_run(folder, name, train=TRAIN, parallel=student)
    own = replace(config.teachers[0], model=TEACHER, parallel=teacher, **of_teacher)
    return replace(config, teachers=(own,))


def train_in_turn(configs: Sequence[RunConfig]) -> None:
    for config in configs:
        train_loop.train(config, layouts.start(config.parallel, "cpu", config.train.seed))
        parallel_state.destroy_model_parallel()


def together(world_size: int, configs: Sequence[RunConfig]) -> None:
    """Trainings one after another on the same ranks."""
    for config in configs:
        Path(config.run_dir).mkdir(exist_ok=True)
    run_ranks(world_size, train_in_turn, configs, timeout=200)


def saved_weights(config: RunConfig) -> set[str]:
    """Names of what the last checkpoint has, without the optimizer."""
    checkpoint = checkpoint_path(Path(config.run_dir), TRAIN.steps)
    found = dist_checkpointing.load_tensors_metadata(str(checkpoint))
    return {name for name in found if not name.startswith(("optimizer", "chained"))}


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [(2, TWO_RANKS), pytest.param(4, FOUR_RANKS, marks=pytest.mark.slow)],
    ids=["two ranks", "four ranks"],
)
def test_every_layout_under_every_other_gives_the_same_curve(
    folder: Path, world_size: int, cases: dict[str, tuple[ParallelConfig, ParallelConfig]]
) -> None:
    runs = [run(folder, name.replace(" ", "_"), student, teacher) for name, (teacher, student) in cases.items()]
    together(world_size, runs)
    alone = run(folder, "alone", layout(), None)
    for config in runs:
        assert_same_curve(toy.metrics(config), toy.metrics(alone))
        assert saved_weights(config) == saved_weights(alone)


def cached(folder: Path, cache: str, parallel: ParallelConfig, storage: Storage) -> CacheReader:
    """What one layout stores of the teacher."""
    config = run(folder, "stored", parallel, None, cache=cache)
    filled = fill_caches(config, CacheJob(storage=storage, shard_tokens=500))
    assert filled is not None
    assert [result.missing for result in filled] == [0, 0]
    assert filled[0].written == filled[0].shards > 3
    return CacheReader(cache_directory(config.data.path, cache))


def test_a_cache_is_the_same_from_stages_and_cut_sequences(folder: Path) -> None:
    alone = cached(folder, "alone", layout(), Storage(stored_as="fp32"))
    places = torch.arange(alone.manifest.tokens)
    assert alone.hidden(places).abs().sum() > 0
    for name, parallel in (("pp2", layout(pp=2)), ("cp2", layout(cp=2))):
        cut = cached(folder, name, parallel, Storage(stored_as="fp32"))
        torch.testing.assert_close(cut.hidden(places), alone.hidden(places), rtol=1e-5, atol=1e-5)
        assert torch.equal(cut.head().weight, alone.head().weight)
    likely = [
        cached(folder, f"top_k_{i}", parallel, Storage(stored_as="top_k", count=4)).sparse(places)
        for i, parallel in enumerate((layout(), layout(pp=2)))
    ]
    assert torch.equal(likely[0].ids, likely[1].ids)
    torch.testing.assert_close(likely[0].log_probs, likely[1].log_probs, rtol=1e-3, atol=1e-3)


@dataclass
class Seen:
    """What a rank saw in three steps: losses, bytes that were copied, and of the parameters, before the first step, in
    each forward pass and at the end, whether they had no memory but the host's."""

    losses: list[float]
    to_host: int
    to_device: int
    released: list[bool]


def observe(config: RunConfig) -> Seen:
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    (source,) = training.objective.sources
    assert isinstance(source, OwnLayoutSource)
    parameters = list(source.model.parameters())
    optimized = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert optimized
    assert not optimized & {id(p) for p in parameters}
    assert not any(p.requires_grad for p in parameters)
    weights, released = source.offloaded, list[bool]()

    def look(*_: Any) -> None:
        if weights is not None:
            released.append(weights.are_released)

    look()
    source.model.register_forward_pre_hook(look)
    batches = training.batches()
    lines = [train_loop.train_step(training, step, next(batches)) for step in (1, 2, 3)]
    look()
    return Seen([line["loss"] for line in lines], source.store.bytes_to_host, source.store.bytes_to_device, released)


def observe_in_turn(configs: Sequence[RunConfig]) -> list[Seen]:
    seen: list[Seen] = []
    for config in configs:
        seen.append(observe(config))
        parallel_state.destroy_model_parallel()
    return seen


def test_what_is_offloaded_waits_in_host_memory_and_changes_nothing(folder: Path) -> None:
    student, teacher = layout(pp=2), layout(tp=2)
    kinds = ("parameters", "hidden", "both")
    plain = run(folder, "plain", student, teacher)
    configs = [plain, *(run(folder, kind, student, teacher, offload=kind) for kind in kinds)]
    for config in configs:
        Path(config.run_dir).mkdir()
    first, last = run_ranks(2, observe_in_turn, configs, timeout=120)
    for rank in (first, last):
        nothing, parameters, hidden, both = rank
        assert parameters.losses == hidden.losses == both.losses == nothing.losses
        assert nothing.released == hidden.released == []
        # Four micro batches in each of three steps, between the two looks from outside.
        assert parameters.released == both.released == [True, *[False] * 12, True]
        assert nothing.to_host == parameters.to_host == 0
        assert (hidden.to_host, hidden.to_device) == (both.to_host, both.to_device)
    of_micro_batch = 2 * 48 * TEACHER.hidden_size * 4
    # Each rank of the teacher computes all rows of a step; the student's last stage keeps them, and has four passes:
    # the first step measures the balance of the losses before it trains.
    assert (first[1].to_host, first[2].to_host, last[2].to_host) == (0, 12 * of_micro_batch, 24 * of_micro_batch)
    assert (first[2].to_device, last[2].to_device) == (12 * of_micro_batch, (12 + 16) * of_micro_batch)
    assert_same_curve(
        [{"loss": loss} for loss in last[3].losses],
        [{"loss": line["loss"]} for line in toy.metrics(run(folder, "alone", layout(), None))],
    )


def taken(config: RunConfig) -> tuple[int, int, int]:
    """Bytes of the teacher's parameters on this rank, of its hidden states that wait after a step has begun, and of
    those and all that it computed in it."""
    training = set_up(config, layouts.start(config.parallel, "cpu", config.train.seed))
    (source,) = training.objective.sources
    assert isinstance(source, OwnLayoutSource)
    training.objective.prepare(next(training.batches()))
    return sum(p.nbytes for p in source.model.parameters()), source.waiting_bytes, source.store.bytes_to_host


@pytest.mark.parametrize(("student", "teacher"), [(layout(tp=2), layout(pp=2)), (layout(pp=2), layout(tp=2))])
def test_a_plan_knows_what_waits(folder: Path, student: ParallelConfig, teacher: ParallelConfig) -> None:
    config = run(folder, "planned", student, teacher, offload="hidden")
    Path(config.run_dir).mkdir(exist_ok=True)
    weights, waiting, put = run_ranks(2, taken, config)[-1]
    cut = Shape(
        TEACHER,
        tokenizers.load("bytes").vocab_size,
        teacher.tensor_model_parallel_size,
        teacher.pipeline_model_parallel_size,
    )
    shape = Shape(toy.STUDENT, 323, student.tensor_model_parallel_size, student.pipeline_model_parallel_size)
    own = OwnLayout(teachers=(cut,), dp=1)
    of_student = own_layout_memory(config, Memory(loss_blocks=1e9), shape, 1, own)
    of_teacher = own_layout_memory(config, Memory(), shape, 1, own)
    assert (of_student.teacher_weights, of_student.teacher_hidden) == (weights, waiting)
    assert of_teacher.teacher_hidden == put - waiting
    assert waiting == TRAIN.global_batch_size * 48 * 16 * 4 // student.tensor_model_parallel_size
    offloaded = own_layout_memory(config, Memory(loss_blocks=1e9), shape, 1, replace(own, offload="both"))
    assert (offloaded.teacher_weights, offloaded.teacher_hidden) == (0, waiting / 4)


@pytest.mark.slow
def test_a_student_with_virtual_stages_has_a_teacher_in_another_layout(folder: Path) -> None:
    interleaved = replace(layout(pp=2), virtual_pipeline_model_parallel_size=2)
    configs = [run(folder, "interleaved", interleaved, None), run(folder, "interleaved_tp2", interleaved, layout(tp=2))]
    configs = [replace(config, student=replace(config.student, num_layers=4)) for config in configs]
    together(2, configs)
    assert_same_curve(*map(toy.metrics, configs))


def test_the_groups_of_both_layouts_stay_their_own() -> None:
    assert run_ranks(2, sizes_in_turn) == [[(2, 1), (1, 2), (2, 1), (1, 2), (2, 1)]] * 2


def sizes_in_turn() -> list[tuple[int, int]]:
    """(tp, pp) that Megatron sees before, in and after a second layout, and when it is entered again after an error."""

    def sizes() -> tuple[int, int]:
        tp_size, pp_size = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
        )
        groups = ProcessGroupCollection.use_mpu_process_groups()
        assert (groups.tp.size(), groups.pp.size()) == (tp_size, pp_size)
        return tp_size, pp_size

    second = SecondLayout(layout(pp=2), layouts.start(layout(tp=2), "cpu", seed=1))
    seen = [sizes()]
    with second.active() as inside:
        seen.append(sizes())
        assert inside.is_last_stage == (inside.rank == 1)
    seen.append(sizes())
    with contextlib.suppress(RuntimeError), second.active():
        seen.append(sizes())
        raise RuntimeError
    return [*seen, sizes()]
