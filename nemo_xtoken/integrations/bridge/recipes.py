"""Complete distillations by name: functions that return a config for Bridge's `pretrain`.

Settings are the paper's (X-Token, arXiv 2605.21699): global batch 768, sequences of 4,096 tokens, AdamW with lr 5e-5,
weight decay 0.1, betas 0.9 and 0.98, 4,000 steps of warm-up, then cosine, clipping at 1.0, bf16. The number of steps is
ours. Every recipe needs data that `nemo-xtoken data prepare` made with the two models' tokenizers: `data` is its
directory. Building a recipe downloads nothing; the weights are read when it runs.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
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
)
from megatron.bridge.training.tokenizers.config import TokenizerConfig

from nemo_xtoken.config import DataConfig, Fp8Config, LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge import cpu_device
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.distillation import extend
from nemo_xtoken.integrations.bridge.models import provider_from
from nemo_xtoken.integrations.bridge.precision import mixed_precision
from nemo_xtoken.integrations.bridge.published import published
from nemo_xtoken.integrations.bridge.versions import validation_of

Precision = str | Fp8Config
"""One of Bridge's names, or FP8 settings of ours."""

LLAMA32_1B = "meta-llama/Llama-3.2-1B"
PHI4_MINI = "microsoft/Phi-4-mini-instruct"
P_KL = LossConfig(mode="p_kl", teacher_top_k=8192)
H_KL = LossConfig(mode="h_kl")
SAME_TOKENIZER = LossConfig(mode="same_tokenizer")


def llama32_1b_from_qwen3_4b(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = 20_000
) -> DistillationContainer:
    """Llama-3.2-1B from Qwen3-4B on 8 GPUs of 80 GB: P-KL, since Qwen has no numerals of several digits."""
    teacher = BridgeTeacher(
        name="qwen3_4b",
        provider=published("Qwen/Qwen3-4B"),
        projection=projection,
        loss=P_KL,
    )
    return _recipe("llama32_1b_from_qwen3_4b", published(LLAMA32_1B), [teacher], data, precision, steps)


def llama32_1b_from_phi4_mini(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = 20_000
) -> DistillationContainer:
    """Llama-3.2-1B from Phi-4-mini on 8 GPUs of 80 GB: H-KL, since Phi has the same numerals."""
    teacher = BridgeTeacher(name="phi4_mini", provider=published(PHI4_MINI), projection=projection, loss=H_KL)
    return _recipe("llama32_1b_from_phi4_mini", published(LLAMA32_1B), [teacher], data, precision, steps)


def llama32_1b_from_phi4_mini_and_llama32_3b(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = 20_000
) -> DistillationContainer:
    """Llama-3.2-1B from Phi-4-mini (weight 0.8) and Llama-3.2-3B (0.2), on 8 GPUs of 80 GB.

    The data has to have both: `--teacher phi4_mini=SPEC --teacher llama32_3b=SPEC`. `projection` is Phi's.
    """
    phi = BridgeTeacher(name="phi4_mini", provider=published(PHI4_MINI), projection=projection, loss=H_KL, weight=0.8)
    llama = BridgeTeacher(
        name="llama32_3b",
        provider=published("meta-llama/Llama-3.2-3B"),
        loss=LossConfig(mode="same_tokenizer"),
        weight=0.2,
    )
    return _recipe(
        "llama32_1b_from_phi4_mini_and_llama32_3b", published(LLAMA32_1B), [phi, llama], data, precision, steps
    )


def mistral_7b_from_qwen3_32b(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = 20_000
) -> DistillationContainer:
    """Mistral-7B from Qwen3-32B on 4 nodes of 8 GPUs of 80 GB, tensor parallel 8 with sequence parallelism."""
    student = published("mistralai/Mistral-7B-v0.3")
    student.tensor_model_parallel_size, student.sequence_parallel = 8, True
    teacher = BridgeTeacher(
        name="qwen3_32b",
        provider=published("Qwen/Qwen3-32B"),
        projection=projection,
        loss=P_KL,
    )
    return _recipe("mistral_7b_from_qwen3_32b", student, [teacher], data, precision, steps)


def mistral_nemo_12b_from_qwen3_32b(
    data: str = "data", *, projection: str | None = None, precision: str = "bf16_mixed", steps: int = 20_000
) -> DistillationContainer:
    """Mistral-NeMo-12B from Qwen3-32B on 16 nodes of 8 GPUs of 80 GB: tp 8, pp 4, cp 2, the rest dp.

    The teacher's weights are 8 GB on each GPU of the last pipeline stage, and of every stage while they are read.
    """
    student = published("mistralai/Mistral-Nemo-Base-2407")
    student.tensor_model_parallel_size, student.sequence_parallel = 8, True
    student.pipeline_model_parallel_size, student.context_parallel_size = 4, 2
    teacher = BridgeTeacher(name="qwen3_32b", provider=published("Qwen/Qwen3-32B"), projection=projection, loss=P_KL)
    config = _recipe("mistral_nemo_12b_from_qwen3_32b", student, [teacher], data, precision, steps)
    config.optimizer.lr = 2e-5
    return config


def tiny_cpu(
    data: str = "data",
    *,
    student: str = "student",
    teacher: str = "teacher",
    projection: str | None = None,
    steps: int = 20,
) -> DistillationContainer:
    """Small Hugging Face models, by their directories, on the CPU in fp32: to try things out."""
    if not cpu_device.installed():
        raise ConfigError("recipe tiny_cpu is for the CPU: python -m nemo_xtoken.integrations.bridge.run --device cpu")
    config = _recipe(
        "tiny_cpu",
        provider_from(student),
        [BridgeTeacher(name="tiny", model=teacher, projection=projection)],
        data,
        None,
        steps,
        lengths=(32, 48),
    )
    config.train.global_batch_size, config.train.micro_batch_size = 8, 2
    config.optimizer.lr, config.scheduler.lr_warmup_iters = 5e-3, 2
    config.logger.log_interval = 1
    return config


RECIPES: dict[str, Callable[..., DistillationContainer]] = {
    recipe.__name__: recipe
    for recipe in (
        llama32_1b_from_qwen3_4b,
        llama32_1b_from_phi4_mini,
        llama32_1b_from_phi4_mini_and_llama32_3b,
        mistral_7b_from_qwen3_32b,
        mistral_nemo_12b_from_qwen3_32b,
        tiny_cpu,
    )
}


def _recipe(
    name: str,
    student: Any,
    teachers: Sequence[BridgeTeacher],
    data: str,
    precision: Precision | None,
    steps: int,
    lengths: tuple[int, int] = (4096, 4096),
) -> DistillationContainer:
    """The paper's settings around a student and its teachers."""
    if precision is None:
        student.params_dtype = student.pipeline_dtype = torch.float32
        student.bf16 = student.fp16 = False
    else:
        student.pipeline_dtype = torch.bfloat16
    on_gpu = precision is not None
    folder = f"checkpoints/{name}"
    base = ConfigContainer(
        model=student,
        train=TrainingConfig(train_iters=steps, global_batch_size=768, micro_batch_size=1),
        optimizer=_optimizer(distributed=on_gpu),
        scheduler=SchedulerConfig(
            lr_decay_style="cosine",
            lr_warmup_iters=min(4000, max(steps // 5, 1)),
            lr_decay_iters=steps,
            start_weight_decay=0.1,
            end_weight_decay=0.1,
            override_opt_param_scheduler=True,  # so that a run goes on with more steps
        ),
        dataset=_placeholder(num_workers=4 if on_gpu else 0),
        logger=LoggerConfig(log_interval=10, tensorboard_dir=f"{folder}/tensorboard"),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=student.hf_model_id),
        checkpoint=CheckpointConfig(save=folder, load=folder, save_interval=500, most_recent_k=2),
        ddp=DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=on_gpu),
        dist=DistributedInitConfig(),
        rng=RNGConfig(seed=1234),
        mixed_precision=mixed_precision(precision) if isinstance(precision, Fp8Config) else precision,
    )
    validation_of(base).eval_interval, validation_of(base).eval_iters = 500, 0
    student_length, teacher_length = lengths
    described = DataConfig(path=data, student_sequence_length=student_length, teacher_sequence_length=teacher_length)
    return extend(base, teachers, described)


def _optimizer(*, distributed: bool) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=5e-5,
        min_lr=0.0,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.98,
        clip_grad=1.0,
        use_distributed_optimizer=distributed,
    )


def _placeholder(num_workers: int) -> MockGPTDatasetConfig:
    """A dataset that `extend` replaces, which takes its loader's settings over."""
    return MockGPTDatasetConfig(
        random_seed=1234,
        seq_length=1,
        reset_attention_mask=False,
        reset_position_ids=False,
        eod_mask_loss=False,
        num_workers=num_workers,
    )
