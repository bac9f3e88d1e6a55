"""Complete distillations, named by models and by GPUs of 80 GB: functions that return a config for Bridge's `pretrain`.

Settings are the paper's (X-Token, arXiv 2605.21699): global batch 768, sequences of 4,096 tokens, AdamW with lr 5e-5,
weight decay 0.1, betas 0.9 and 0.98, 4,000 steps of warm-up, then cosine, clipping at 1.0, bf16. The number of steps is
ours. The set is that of the NeMo integration, a function for each student, and Mistral-7B. Every recipe needs data that
`nemo-xtoken data prepare` made with the two models' tokenizers: `data` is its directory. Building a recipe downloads
nothing; the weights are read when it runs. None of those for GPUs has been run on one.
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
from nemo_xtoken.integrations.bridge.published import NEMOTRON4_15B, published
from nemo_xtoken.integrations.bridge.versions import validation_of

Precision = str | Fp8Config
"""One of Bridge's names, or FP8 settings of ours."""

LLAMA32_1B = "meta-llama/Llama-3.2-1B"
PHI4_MINI = "microsoft/Phi-4-mini-instruct"
STEPS = 30_000
PHI_LENGTHS = (4096, 4096)
"""Beyond 4,096 tokens Phi-4-mini stretches its positions. Qwen splits numerals, and needs more tokens for a text."""
P_KL = LossConfig(mode="p_kl", teacher_top_k=8192)
H_KL = LossConfig(mode="h_kl")
SAME_TOKENIZER = LossConfig(mode="same_tokenizer")


def llama32_1b_from_qwen3_4b_8gpu(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = STEPS
) -> DistillationContainer:
    """Llama-3.2-1B from Qwen3-4B with P-KL, since Qwen has no numerals of several digits: tp 2, dp 4."""
    qwen = BridgeTeacher(name="qwen3_4b", provider=published("Qwen/Qwen3-4B"), projection=projection, loss=P_KL)
    return _recipe("llama32_1b_from_qwen3_4b_8gpu", _llama32_1b(), [qwen], data, precision, steps, micro_batch=2)


def llama32_1b_from_phi4_mini_8gpu(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = STEPS
) -> DistillationContainer:
    """Llama-3.2-1B from Phi-4-mini with H-KL, since Phi has the same numerals: tp 2, dp 4."""
    phi = BridgeTeacher(name="phi4_mini", provider=published(PHI4_MINI), projection=projection, loss=H_KL)
    name = "llama32_1b_from_phi4_mini_8gpu"
    return _recipe(name, _llama32_1b(), [phi], data, precision, steps, micro_batch=2, lengths=PHI_LENGTHS)


def llama32_1b_from_phi4_mini_and_llama32_3b_8gpu(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = STEPS
) -> DistillationContainer:
    """Llama-3.2-1B from Phi-4-mini with H-KL, weight 0.8, and from Llama-3.2-3B, weight 0.2: tp 2, dp 4.

    The data has to have both: `--teacher phi4_mini=SPEC --teacher llama32_3b=SPEC`. `projection` is Phi's.
    """
    phi = BridgeTeacher(name="phi4_mini", provider=published(PHI4_MINI), projection=projection, loss=H_KL, weight=0.8)
    provider = published("meta-llama/Llama-3.2-3B")
    llama = BridgeTeacher(name="llama32_3b", provider=provider, loss=SAME_TOKENIZER, weight=0.2)
    name, teachers = "llama32_1b_from_phi4_mini_and_llama32_3b_8gpu", [phi, llama]
    return _recipe(name, _llama32_1b(), teachers, data, precision, steps, micro_batch=2, lengths=PHI_LENGTHS)


def mistral_7b_from_qwen3_32b_32gpu(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = STEPS
) -> DistillationContainer:
    """Mistral-7B from Qwen3-32B with P-KL on 4 nodes: tp 8, dp 4."""
    student = published("mistralai/Mistral-7B-v0.3")
    student.tensor_model_parallel_size, student.sequence_parallel = 8, True
    return _recipe("mistral_7b_from_qwen3_32b_32gpu", student, [_qwen3_32b(projection)], data, precision, steps)


def mistral_nemo_12b_from_qwen3_32b_128gpu(
    data: str = "data", *, projection: str | None = None, precision: Precision = "bf16_mixed", steps: int = STEPS
) -> DistillationContainer:
    """Mistral-NeMo-12B from Qwen3-32B with P-KL on 16 nodes: tp 8, pp 4, cp 2, the rest dp.

    The teacher's weights are 8 GB on each GPU of the last pipeline stage, and of every stage while they are read.
    """
    student = published("mistralai/Mistral-Nemo-Base-2407")
    return _on_many_nodes("mistral_nemo_12b_from_qwen3_32b_128gpu", student, data, projection, precision, steps)


def nemotron4_15b_from_qwen3_32b_128gpu(
    data: str = "data",
    *,
    student: str = "checkpoints/nemotron4_15b",
    projection: str | None = None,
    precision: Precision = "bf16_mixed",
    steps: int = STEPS,
) -> DistillationContainer:
    """Nemotron-4-15B from Qwen3-32B with P-KL on 16 nodes: tp 8, pp 4, cp 2, the rest dp.

    `student` is a directory with its weights and tokenizer in Hugging Face's format, under no name of which they are
    published. The teacher's weights are 8 GB on each GPU of the last stage, and of every stage while they are read.
    """
    provider = published(NEMOTRON4_15B, weights=student)
    return _on_many_nodes("nemotron4_15b_from_qwen3_32b_128gpu", provider, data, projection, precision, steps)


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
        llama32_1b_from_qwen3_4b_8gpu,
        llama32_1b_from_phi4_mini_8gpu,
        llama32_1b_from_phi4_mini_and_llama32_3b_8gpu,
        mistral_7b_from_qwen3_32b_32gpu,
        mistral_nemo_12b_from_qwen3_32b_128gpu,
        nemotron4_15b_from_qwen3_32b_128gpu,
        tiny_cpu,
    )
}


def _llama32_1b() -> Any:
    student = published(LLAMA32_1B)
    student.tensor_model_parallel_size, student.sequence_parallel = 2, True
    return student


def _qwen3_32b(projection: str | None) -> BridgeTeacher:
    return BridgeTeacher(name="qwen3_32b", provider=published("Qwen/Qwen3-32B"), projection=projection, loss=P_KL)


def _on_many_nodes(
    name: str, student: Any, data: str, projection: str | None, precision: Precision, steps: int
) -> DistillationContainer:
    student.tensor_model_parallel_size, student.sequence_parallel = 8, True
    student.pipeline_model_parallel_size, student.context_parallel_size = 4, 2
    config = _recipe(name, student, [_qwen3_32b(projection)], data, precision, steps)
    config.optimizer.lr = 2e-5
    return config


def _recipe(
    name: str,
    student: Any,
    teachers: Sequence[BridgeTeacher],
    data: str,
    precision: Precision | None,
    steps: int,
    *,
    micro_batch: int = 1,
    lengths: tuple[int, int] = (4096, 5120),
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
        train=TrainingConfig(train_iters=steps, global_batch_size=768, micro_batch_size=micro_batch),
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
