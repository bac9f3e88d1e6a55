"""What NeMo's trainer and strategy offer besides layouts: each works with our curve, or is refused with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import wandb
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from nemo import lightning as nl
from nemo.collections import llm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron import launch
from nemo_xtoken.integrations.nemo import DistillationProgress
from nemo_xtoken.integrations.nemo.layers import DocumentLayers, adapt_layers
from nemo_xtoken.integrations.nemo.layout import check_strategy, check_trainer
from nemo_xtoken.integrations.nemo.run import check, start_run
from nemo_xtoken.integrations.nemo.strategy import CpuMegatronStrategy
from tests.distributed import toy
from tests.nemo import toy as nemo_toy
from tests.nemo.nemo_ranks import rendezvous, run_nemo_ranks
from tests.nemo.test_nemo_training import assert_same_curve, our_run

pytestmark = pytest.mark.timeout(240)

STEPS, INTERVAL = 6, 3
TP2 = ParallelConfig(tensor_model_parallel_size=2)
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
VALIDATION = {"limit_val_batches": 1.0, "val_check_interval": INTERVAL, "check_val_every_n_epoch": None}

Lines = list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W, a trained teacher, and the student's run by our own loop, with validation."""
    folder = tmp_path_factory.mktemp("features")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    launch(validated(folder, "ours"))
    return folder


def validated(folder: Path, name: str, **changes: Any) -> RunConfig:
    config = our_run(folder, name, steps=STEPS, **changes)
    return replace(config, train=replace(config.train, validation_interval=INTERVAL, validation_batches=1))


def fit(
    config: RunConfig,
    *,
    model: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    callbacks: list[Any] | None = None,
    log: dict[str, Any] | None = None,
) -> tuple[Lines, Lines]:
    """Train on this rank by `llm.train`; what each step and each validation reported."""
    nemo_toy.run_folder(config)
    curve = nemo_toy.Curve()
    changed = {"logger": True, "enable_checkpointing": True, **VALIDATION, **(trainer or {})}
    its_trainer = nemo_toy.trainer(config, [curve, DistillationProgress(), *(callbacks or [])], **changed)
    its_trainer.strategy.store = rendezvous()
    student = nemo_toy.student_model(config)
    for name, value in (model or {}).items():
        setattr(student.config, name, value)
    llm.train(
        model=student,
        data=nemo_toy.data(config, validation_path=config.data.validation_path, validation_batches=1),
        trainer=its_trainer,
        log=nl.NeMoLogger(
            explicit_log_dir=config.run_dir, ckpt=nl.ModelCheckpoint(save_last=False, save_top_k=0), **(log or {})
        ),
        tokenizer="data",
    )
    wandb.finish()  # as a process that ends does; a forked rank does not
    return curve.lines, curve.validation


def on_ranks(config: RunConfig, **options: Any) -> tuple[Lines, Lines]:
    """The same curve on every rank."""
    curves = run_nemo_ranks(config.parallel.world_size, lambda: fit(config, **options))
    assert all(curve == curves[0] for curve in curves)
    return curves[0]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    (path,) = folder.rglob("events.out.tfevents*")
    events = EventAccumulator(str(path))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def assert_same_validation(ours: Lines, nemos: Lines) -> None:
    """Our loop has a validation in the line of its step, NeMo one for each batch."""
    wanted = [line for line in ours if "validation_ce" in line]
    assert [line["step"] for line in wanted] == [INTERVAL, 2 * INTERVAL]
    for our, nemo in zip(wanted, nemos, strict=True):
        for name in ("ce", "kd", "top_1_agreement"):
            assert nemo[name] == pytest.approx(our[f"validation_{name}"], rel=1e-5), name


def test_recomputation_validation_and_loggers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once: none of them changes the curve, and each logger has it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = validated(folder, "all")
    loggers = {
        "tensorboard": TensorBoardLogger(save_dir="events", name=""),
        "wandb": WandbLogger(save_dir="weights_and_biases", project="distillation", offline=True),
    }
    lines, validations = on_ranks(config, model=FULL, log=loggers)
    ours = toy.metrics(validated(folder, "ours"))
    assert_same_curve(ours, lines)
    assert_same_validation(ours, validations)
    logged = scalars(Path(config.run_dir))
    for name in ("kd", "ce", "top_1_agreement"):
        assert [logged[name][step] for step in range(STEPS)] == pytest.approx([line[name] for line in ours], rel=1e-5)
    assert list(logged["reduced_train_loss"].values()) == pytest.approx([line["loss"] for line in ours], rel=1e-5)
    wanted = [line["validation_ce"] for line in ours if "validation_ce" in line]
    assert list(logged["val_ce"].values()) == pytest.approx(wanted, rel=1e-5)
    assert {"val_kd", "val_loss"} <= set(logged)
    (offline,) = (Path(config.run_dir)).rglob("run-*.wandb")
    content = offline.read_bytes()
    assert all(name in content for name in (b"reduced_train_loss", b"kd_weight", b"val_ce"))


def test_selective_recomputation_on_two_ranks_and_one_micro_batch(folder: Path) -> None:
    """Gradients of one micro batch of eight samples are those of four of two; our own loop's are of four."""
    config = validated(folder, "selective", parallel=replace(TP2, sequence_parallel=True))
    config = replace(config, train=replace(config.train, micro_batch_size=8))
    lines, validations = on_ranks(config, model=SELECTIVE)
    ours = toy.metrics(validated(folder, "ours"))
    assert_same_curve(ours, lines)
    assert_same_validation(ours, validations)


@pytest.mark.parametrize("monitor", ["val_ce", "val_loss"])
def test_early_stopping_ends_every_rank_at_the_same_step(folder: Path, monitor: str) -> None:
    """It waits for an improvement by more than there is, once."""
    config = validated(folder, f"stopped-by-{monitor}", parallel=TP2)
    config = replace(config, train=replace(config.train, steps=4 * INTERVAL))
    lines, validations = on_ranks(config, callbacks=[EarlyStopping(monitor, min_delta=1e3, patience=1)])
    assert (len(lines), len(validations)) == (2 * INTERVAL, 2)


def test_bf16_is_near_fp32(folder: Path) -> None:
    config = validated(folder, "bf16")
    lines, _ = on_ranks(config, trainer={"plugins": nl.MegatronMixedPrecision(precision="bf16-mixed")})
    ours = toy.metrics(validated(folder, "ours"))
    for our, line in zip(ours, lines, strict=True):
        assert all(math.isfinite(line[name]) for name in ("loss", "ce", "kd"))
        assert line["loss"] == pytest.approx(our["loss"], rel=2e-2)
    assert lines[0]["loss"] != pytest.approx(ours[0]["loss"], rel=1e-6)


STRATEGIES: dict[str, tuple[dict[str, Any], str]] = {
    "virtual pipeline": (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        "NeMo makes a Lightning module for each virtual stage",
    ),
    "experts": ({"expert_model_parallel_size": 2}, "a teacher has no expert groups of its own here"),
    "pytorch": ({"ddp": "pytorch"}, 'averages gradients over ranks; use ddp="megatron"'),
    "averaged": (
        {"ddp": DistributedDataParallelConfig(average_in_collective=True)},
        "the loss is divided by counts of the whole global batch",
    ),
    "fsdp": (
        {"ddp": DistributedDataParallelConfig(use_megatron_fsdp=True), "save_ckpt_format": "fsdp_dtensor"},
        "Megatron FSDP cuts the head",
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_strategy_can_not_do_is_refused_with_its_reason(name: str) -> None:
    options, message = STRATEGIES[name]
    check_strategy(CpuMegatronStrategy())
    with pytest.raises(ConfigError, match=message):
        check_strategy(CpuMegatronStrategy(**options))


def test_what_does_not_belong_together_is_refused(folder: Path) -> None:
    config = validated(folder, "refused")
    data, model = nemo_toy.data(config), nemo_toy.student_model(config)
    manifest = data.manifests[0]
    check(model, data, manifest)
    with pytest.raises(ConfigError, match="accumulate_grad_batches=2: NeMo's strategy takes a whole step"):
        check_trainer(SimpleNamespace(accumulate_grad_batches=2))
    with pytest.raises(ConfigError, match="expected a PreparedDataModule as data, got LightningDataModule"):
        start_run(model, SimpleNamespace(datamodule=pl.LightningDataModule()))
    for field, value, message in (
        ("seq_length", 64, "the student's seq_length is 64, the data's 32"),
        ("vocab_size", 8, "the student's vocab_size 8 is less than the"),
        ("calculate_per_token_loss", False, "losses are sums, divided once"),
    ):
        changed = SimpleNamespace(config=replace(model.config, **{field: value}))
        with pytest.raises(ConfigError, match=message):
            check(changed, data, manifest)


def test_layers_that_can_not_take_the_documents_mask_are_refused(folder: Path) -> None:
    config: Any = nemo_toy.student_model(validated(folder, "layers")).config
    whole: Any = get_gpt_layer_local_spec()
    whole.submodules.self_attention = None
    with pytest.raises(ConfigError, match="set use_transformer_engine_full_layer_spec=False"):
        DocumentLayers(whole)(config)
    config.window_size = (32, 0)
    adapt_layers(config)
    assert config.window_size is None
    config.window_size = (31, 0)
    with pytest.raises(ConfigError, match="attention looks back 31 tokens, sequences have 32"):
        adapt_layers(config)
