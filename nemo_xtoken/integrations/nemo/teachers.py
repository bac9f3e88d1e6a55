"""A NeMo config and its checkpoint as a frozen teacher."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from nemo.lightning import io
from nemo.lightning.ckpt_utils import ckpt_to_context_subdir
from nemo.lightning.io.pl import ckpt_to_weights_subdir

from nemo_xtoken.data.manifest import Side
from nemo_xtoken.errors import CheckpointError, ConfigError
from nemo_xtoken.integrations.megatron.fp8_backend import transformer_fields
from nemo_xtoken.integrations.megatron.head_tap import tap_head
from nemo_xtoken.integrations.megatron.initial_weights import initialise
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.nemo.config import NemoTeacher
from nemo_xtoken.integrations.nemo.cpu_device import fused_rope_allowed
from nemo_xtoken.integrations.nemo.data import StudentTokenizer
from nemo_xtoken.integrations.nemo.layers import adapt_layers

NOT_FOR_TEACHERS = ("fp8", "fp4", "recompute_granularity", "recompute_method", "recompute_num_layers")


def build_teacher(
    teacher: NemoTeacher, layout: Layout, *, student: Any, side: Side, seq_length: int
) -> GPTModel | None:
    """The teacher's model on this rank, in eval mode, frozen, handing out hidden states. Every rank must call it.

    With pipeline stages it is whole on the ranks of the last stage and None on the others.
    `student` is the student's config: it decides layout and precision. Raises CheckpointError, ConfigError.
    """
    layout.teacher_groups()
    model = None
    if layout.is_last_stage:
        config = teacher_config(teacher, layout, student, seq_length)
        model = config.configure_model(StudentTokenizer.of(side), pre_process=True, post_process=True)
        model = tap_head(model).to(layout.device)
        model.requires_grad_(False)
        model.eval()
    _load(model, teacher, side)
    return model


def teacher_config(teacher: NemoTeacher, layout: Layout, student: Any, seq_length: int) -> Any:
    """The teacher's own config in the student's layout and precision, with all layers in one stage and its own FP8."""
    config = copy.deepcopy(teacher.config or _config_of(teacher))
    tp_size = layout.parallel.tensor_model_parallel_size
    heads, groups = config.num_attention_heads, config.num_query_groups or config.num_attention_heads
    if heads % tp_size or groups % tp_size:
        raise ConfigError(
            f"teacher {teacher.name!r}: {heads} attention heads in {groups} query groups are not divisible by "
            f"tensor_model_parallel_size {tp_size}"
        )
    values = {
        "seq_length": seq_length,
        "tensor_model_parallel_size": tp_size,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": layout.parallel.context_parallel_size,
        "sequence_parallel": layout.parallel.sequence_parallel,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **dict.fromkeys(NOT_FOR_TEACHERS),
        **transformer_fields(teacher.fp8),
        **{name: getattr(student, name) for name in ("bf16", "fp16", "params_dtype", "autocast_dtype")},
        **{name: getattr(student, name) for name in ("use_cpu_initialization", "gradient_accumulation_fusion")},
        "pipeline_dtype": student.params_dtype,
    }
    known = {field.name for field in dataclasses.fields(config)}
    for name in known & set(values):
        setattr(config, name, values[name])
    config.__post_init__()
    adapt_layers(config)
    return config


def _config_of(teacher: NemoTeacher) -> Any:
    """The config in the checkpoint. Raises CheckpointError where there is none."""
    try:
        with fused_rope_allowed():
            return io.load_context(ckpt_to_context_subdir(Path(str(teacher.checkpoint))), subpath="model.config")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"teacher {teacher.name!r}: expected a NeMo checkpoint with its context at {teacher.checkpoint}, or name "
            f"the teacher's config ({error})"
        ) from error


def _load(model: GPTModel | None, teacher: NemoTeacher, side: Side) -> None:
    owner = f"teacher {teacher.name!r}"
    if teacher.checkpoint is None:
        if model is not None:
            initialise(model, teacher.seed, side.vocab_size)
        return
    weights = Path(ckpt_to_weights_subdir(teacher.checkpoint, is_saving=False))
    if dist_checkpointing.check_is_distributed_checkpoint(str(weights)) and _is_nemo(weights):
        _load_nemo(model, weights, owner)
    else:
        load_model(model, Path(teacher.checkpoint), owner, HeadIds(side.vocab_size, side.fingerprint))


def _is_nemo(weights: Path) -> bool:
    return "head_ids" not in dist_checkpointing.load_common_state_dict(str(weights))


def _load_nemo(model: GPTModel | None, weights: Path, owner: str) -> None:
    wanted: dict[str, Any] = {} if model is None else model.sharded_state_dict(prefix="module.")
    try:
        loaded: Any = dist_checkpointing.load({"state_dict": wanted}, str(weights))
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{owner}: checkpoint {weights} does not fit its config ({first_line}); use the checkpoint and the config "
            "that belong together"
        ) from error
    if model is not None:
        model.load_state_dict({name.removeprefix("module."): value for name, value in loaded["state_dict"].items()})
