"""What distillation inside Bridge does not do, each refused with its reason before anything is built."""

from __future__ import annotations

from typing import Any

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.bridge.dataset import AlignedData
from nemo_xtoken.integrations.bridge.precision import precision_of

GEMMA2 = (
    "Bridge's attention for it puts a window in the place of the mask of packed documents, in every second layer; take "
    "Gemma or Gemma 3"
)
WINDOW = "keys are gathered from all ranks, and nothing keeps a token from those outside its window; set it to 1"


def refuse(config: DistillationContainer) -> None:
    """Raises ConfigError for the first thing in the config that distillation can't do."""
    for is_there, what, why in _limits(config):
        if is_there:
            raise ConfigError(f"{what} does not work with distillation inside Megatron-Bridge: {why}")


def _limits(config: DistillationContainer) -> list[tuple[bool, str, str]]:
    model, data = config.model, config.dataset
    learns = any(teacher.learn_projection for teacher in config.teachers)
    return [
        (
            (model.virtual_pipeline_model_parallel_size or 1) > 1,
            "model.virtual_pipeline_model_parallel_size",
            "a step's micro batches are counted before its first forward pass, and each virtual stage has an iterator "
            "of its own; set it to null",
        ),
        (
            not isinstance(data, AlignedData),
            f"dataset {type(data).__name__}",
            "aligned text of two tokenizers is needed; use AlignedData over the output of `nemo-xtoken data prepare`",
        ),
        (
            data.dataloader_type != "single",
            f"dataset.dataloader_type={data.dataloader_type}",
            "samples have an order of their own, epoch after epoch; set it to single",
        ),
        (
            len({teacher.name for teacher in config.teachers}) < len(config.teachers),
            f"teachers of one name ({', '.join(teacher.name for teacher in config.teachers)})",
            "their metrics and files are told apart by name; give each its own",
        ),
        (
            learns and is_fp16(config),
            "learn_projection with fp16",
            "the scale of fp16's loss would be in W's gradient as well; train in bf16",
        ),
        (
            learns and config.rerun_state_machine.rerun_mode != "disabled",
            f"learn_projection with rerun_state_machine.rerun_mode={config.rerun_state_machine.rerun_mode}",
            "a step that is run twice would add up W's gradient twice; set it to disabled",
        ),
        (
            config.checkpoint.save is None and any(teacher.projection is None for teacher in config.teachers),
            "a teacher without a projection",
            "W is built beside the checkpoints, and checkpoint.save is null; name a projection or a directory",
        ),
        (
            bool(getattr(precision_of(config), "fp4", None)),
            "FP4 (NVFP4)",
            "sequences are padded, and the GPU is checked, for FP8 alone; take one of FP8's or bf16",
        ),
        (config.peft is not None, "peft", "the student's head and the balance are part of what is trained and saved"),
        (
            config.dist.use_megatron_fsdp or config.dist.use_torch_fsdp2 or config.ddp.use_megatron_fsdp,
            "FSDP",
            "the loss needs the head's shard of the vocabulary whole; use tensor and pipeline parallelism",
        ),
        (config.dist.use_decentralized_pg, "dist.use_decentralized_pg", "the teacher is built on Megatron's groups"),
        (
            bool(getattr(model, "mtp_num_layers", None)),
            "multi-token prediction (model.mtp_num_layers)",
            "only the next token is compared; set it to null",
        ),
        (
            getattr(model, "final_logit_softcapping", None) is not None,
            "a student of Gemma 2's architecture",
            GEMMA2,
        ),
        (has_window_over_ranks(model), "attention in a window (model.window_size) with context parallelism", WINDOW),
        (
            model.cuda_graph_impl != "none",
            f"model.cuda_graph_impl={model.cuda_graph_impl}",
            "the number of chunks is another one in every micro batch; set it to none",
        ),
        (
            config.checkpoint.ckpt_format != "torch_dist",
            f"checkpoint.ckpt_format={config.checkpoint.ckpt_format}",
            "the balance is kept in sharded checkpoints; set it to torch_dist",
        ),
        (
            bool(config.inprocess_restart and config.inprocess_restart.enabled),
            "inprocess_restart",
            "the teacher would be built twice; restart the job instead",
        ),
    ]


def is_fp16(config: DistillationContainer) -> bool:
    """Whether the student is trained in fp16."""
    mixed: Any = config.mixed_precision
    named = mixed.startswith("fp16") if isinstance(mixed, str) else bool(getattr(mixed, "fp16", False))
    return named or bool(config.model.fp16)


def has_window_over_ranks(model: Any) -> bool:
    """Whether attention is limited to a window in sequences that are cut over ranks."""
    return getattr(model, "window_size", None) is not None and model.context_parallel_size > 1


def refuse_teacher(name: str, teacher: Any, student: Any) -> None:
    """Raises ConfigError for a teacher that can't stand beside this student."""
    expert_size = max(teacher.expert_model_parallel_size, student.expert_model_parallel_size)
    if teacher.num_moe_experts and expert_size > 1:
        raise ConfigError(
            f"teacher {name!r} has experts and expert_model_parallel_size is {expert_size}: Bridge numbers the experts "
            "that it imports by the student's groups; set it to 1"
        )
    if getattr(teacher, "final_logit_softcapping", None) is not None:
        raise ConfigError(f"teacher {name!r} is of Gemma 2's architecture: {GEMMA2}")
    if has_window_over_ranks(teacher):
        raise ConfigError(f"teacher {name!r}: attention in a window does not work with context parallelism: {WINDOW}")
    for size in ("tensor_model_parallel_size", "context_parallel_size"):
        ours, theirs = getattr(student, size), getattr(teacher, size)
        if ours != theirs:
            raise ConfigError(
                f"teacher {name!r}: {size} {theirs} must be the student's, {ours}: Bridge imports models on the "
                "student's groups"
            )
    for count in ("num_attention_heads", "num_query_groups"):
        if (getattr(teacher, count) or 1) % teacher.tensor_model_parallel_size:
            raise ConfigError(
                f"teacher {name!r}: {count} {getattr(teacher, count)} is not divisible by tensor_model_parallel_size "
                f"{teacher.tensor_model_parallel_size}"
            )
