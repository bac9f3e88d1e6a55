"""The student on this rank: one model, or one for each of the rank's virtual pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from nemo_xtoken.config import RunConfig
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import METADATA, HeadIds, load_weights
from nemo_xtoken.integrations.megatron.models import build_gpt


def build_student(config: RunConfig, layout: Layout, vocab_size: int) -> list[GPTModel]:
    """The rank's part of the student, in the order of its layers; on the last stage the last model has the head."""
    pieces = config.parallel.virtual_pipeline_model_parallel_size
    return [
        build_gpt(
            config.student,
            config.parallel,
            vocab_size=vocab_size,
            max_sequence_length=config.data.student_sequence_length,
            device=config.device,
            seed=config.train.seed,
            params_dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
            pre_process=layout.is_first_stage and piece == 0,
            post_process=layout.is_last_stage and piece == pieces - 1,
            vp_stage=piece if pieces > 1 else None,
            fp8=config.fp8,
        ).to(layout.device)
        for piece in range(pieces)
    ]


def load_parameters(models: Sequence[GPTModel], path: Path, ids: HeadIds) -> None:
    """Load the weights of another training's latest checkpoint, or of one checkpoint. Every rank must call it.

    Weights alone: what FP8 knows of the numbers of that training says nothing of this one's.
    Raises CheckpointError where there is no checkpoint, or it is of another model or tokenizer.
    """
    for model in models:
        parameters = {name for name, _ in model.named_parameters()}
        sharded = model.sharded_state_dict(metadata=dict(METADATA))
        wanted = {name: shards for name, shards in sharded.items() if name in parameters}
        loaded, _ = load_weights(wanted, path, "student_checkpoint", ids)
        model.load_state_dict(loaded, strict=False)


def unwrap(model: Any) -> GPTModel:
    """The model inside of Megatron's wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model
