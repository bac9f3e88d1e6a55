"""Tiny Hugging Face models with real tokenizers, data for both, and Bridge configs that distil one into the other."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.data.utils import get_dataset_provider
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    MockGPTDatasetConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TrainingConfig,
    runtime_config_update,
)
from megatron.bridge.training.pretrain import pretrain as bridge_pretrain
from megatron.bridge.training.setup import setup
from megatron.bridge.training.state import GlobalState
from megatron.bridge.training.tokenizers.config import TokenizerConfig

from nemo_xtoken.config import DataConfig, LossConfig, TeacherLength
from nemo_xtoken.integrations.bridge.callbacks import BalanceCallback
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.distillation import extend, pretrain
from nemo_xtoken.integrations.bridge.models import provider_from
from nemo_xtoken.integrations.bridge.step import DistillationStep
from nemo_xtoken.integrations.bridge.versions import validation_of
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.student import unwrap
from tests.distributed.ranks import run_ranks
from tests.tiny_huggingface import make_all

__all__ = ["BalanceCallback", "bridge_pretrain", "make_all", "pretrain"]

LR = 5e-3
STEPS = 20
VALIDATION = {"eval_iters": 0, "eval_interval": 100}


def config(
    folder: Path,
    name: str,
    *,
    tp: int = 1,
    pp: int = 1,
    steps: int = STEPS,
    teacher: str | None = "qwen3",
    projection: str | None = "projection.safetensors",
    teachers: Sequence[BridgeTeacher] | None = None,
    model: dict[str, Any] | None = None,
    student: str = "llama",
    change: Callable[[ConfigContainer], None] | None = None,
    train: dict[str, Any] | None = None,
    **options: Any,
) -> DistillationContainer:
    """Distillation of a tiny teacher into the tiny Llama, saved under `folder / name` when it ends."""
    base = student_config(folder, name, tp=tp, pp=pp, steps=steps, train=train or {}, student=student)
    for field, value in (model or {}).items():
        setattr(base.model, field, value)
    if change is not None:
        change(base)
    if teachers is None:
        path = None if projection is None else str(folder / projection)
        teachers = [] if teacher is None else [BridgeTeacher(model=str(folder / teacher), projection=path)]
    return extend(base, teachers, data_config(folder, len(teachers) > 1), **options)


def three_teachers(folder: Path) -> list[BridgeTeacher]:
    """One whose W is trained, one of the student's own tokenizer, and one that has the tokens of the first."""
    projection = str(folder / "projection.safetensors")
    return [
        BridgeTeacher(
            name="qwen", model=str(folder / "qwen3"), projection=projection, weight=0.7, learn_projection=True
        ),
        BridgeTeacher(
            name="own",
            model=str(folder / "tied"),
            projection=str(folder / "own_projection.safetensors"),
            loss=LossConfig(mode="same_tokenizer"),
            weight=0.2,
        ),
        BridgeTeacher(
            name="other",
            model=str(folder / "qwen2"),
            projection=projection,
            loss=LossConfig(mode="h_kl"),
            weight=0.1,
            prepared_as="qwen",
        ),
    ]


def data_config(folder: Path, several: bool = False) -> DataConfig:
    """The prepared data of one teacher or of several, packed so that samples hold several documents."""
    suffix = "_of_several" if several else ""
    lengths = (TeacherLength(teacher="own", sequence_length=32),) if several else ()
    return DataConfig(
        path=str(folder / f"data{suffix}"),
        validation_path=str(folder / f"held_out{suffix}"),
        student_sequence_length=32,
        teacher_sequence_length=48,
        teacher_lengths=lengths,
    )


def student_config(
    folder: Path, name: str, *, tp: int, pp: int, steps: int, train: dict[str, Any], student: str = "llama"
) -> ConfigContainer:
    """A pretraining of the tiny Llama as a user of Bridge has it, in fp32."""
    model = provider_from(str(folder / student))
    model.tensor_model_parallel_size, model.pipeline_model_parallel_size = tp, pp
    model.params_dtype = model.pipeline_dtype = torch.float32
    model.bf16 = model.fp16 = False
    saved = str(folder / name)
    config = ConfigContainer(
        model=model,
        train=TrainingConfig(
            **{
                "train_iters": steps,
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "exit_signal_handler": False,
                "manual_gc": False,
                **{name: value for name, value in train.items() if name not in VALIDATION},
            }
        ),
        optimizer=OptimizerConfig(
            optimizer="adam",
            lr=LR,
            min_lr=LR,
            weight_decay=0.1,
            adam_beta1=0.9,
            adam_beta2=0.98,
            clip_grad=0.5,
            params_dtype=torch.float32,
            use_distributed_optimizer=False,
        ),
        scheduler=SchedulerConfig(
            lr_decay_style="constant",
            lr_warmup_iters=0,
            lr_decay_iters=1000,
            start_weight_decay=0.1,
            end_weight_decay=0.1,
        ),
        dataset=MockGPTDatasetConfig(
            random_seed=1,
            seq_length=32,
            reset_attention_mask=False,
            reset_position_ids=False,
            eod_mask_loss=False,
            num_workers=0,
        ),
        logger=LoggerConfig(log_interval=10),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder / "llama")),
        checkpoint=CheckpointConfig(save=saved, load=saved, save_interval=1000),
        ddp=DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False),
        dist=DistributedInitConfig(distributed_backend="gloo"),
        rng=RNGConfig(seed=1),
    )
    for key, value in VALIDATION.items():
        setattr(validation_of(config), key, train.get(key, value))
    return config


def run(folder: Path, name: str, *, tp: int = 1, pp: int = 1, dp: int = 1, **options: Any) -> list[dict[str, float]]:
    """Train on tp x pp x dp ranks of their own; the curve of the last one."""

    def on_rank() -> list[dict[str, float]]:
        return distil(config(folder, name, tp=tp, pp=pp, **options))

    return run_ranks(tp * pp * dp, on_rank, timeout=150)[-1]


class Curve(Callback):
    """The losses of each step, where the last pipeline stage has them."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_train_step_end(self, context: CallbackContext) -> None:
        losses = {name: float(value) for name, value in (context.loss_dict or {}).items()}
        self.lines.append({**losses, "grad_norm": float(context.grad_norm or 0.0)})


class Validation(Callback):
    """The losses of each validation."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_eval_end(self, context: CallbackContext) -> None:
        self.lines.append({name: float(value) for name, value in (context.total_loss_dict or {}).items()})


def distil(config: DistillationContainer) -> list[dict[str, float]]:
    """Train on this rank; its curve, also where Bridge ends the process at `train.exit_interval`."""
    curve = Curve()
    with suppress(SystemExit):
        pretrain(config, [curve])
    return curve.lines


def logits_of_checkpoint(
    folder: Path, name: str, tokens: torch.Tensor, steps: int = STEPS, student: str = "llama"
) -> torch.Tensor:
    """What the student answers when Bridge's own loader has read the checkpoint that training wrote."""
    run = config(folder, name, steps=steps, student=student)
    step = DistillationStep(run)
    state = GlobalState()
    runtime_config_update(run)
    state.cfg = run
    output = setup(state, get_dataset_provider(run.dataset))
    model = unwrap(output.model[0]).eval()
    assert state.train_state.step == steps
    assert step.balance.ratio is not None
    with torch.no_grad():
        hidden = model(tokens, torch.arange(tokens.shape[1])[None], None)
        return hidden @ head_weight(model).t()
