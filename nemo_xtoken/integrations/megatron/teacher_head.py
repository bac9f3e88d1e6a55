"""A teacher's head without its model: read from the checkpoint by the ranks that compare with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nemo_xtoken.config import ModelConfig, TeacherConfig
from nemo_xtoken.integrations.megatron.initial_weights import EMBEDDING, HEAD
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_weights
from nemo_xtoken.integrations.megatron.models import padded_vocab_size
from nemo_xtoken.parallel import HeadOptions
from nemo_xtoken.teachers import TeacherHead

BIAS = "output_layer.bias"


def load_head(
    config: TeacherConfig, layout: Layout, ids: HeadIds, params_dtype: torch.dtype
) -> tuple[TeacherHead | None, Path]:
    """A teacher's head, cut over the student's tp group, on the last pipeline stage, and the checkpoint it is from.

    [V_T/tp, h_T] and the options of these rows, contiguous in tp rank order; None on the other stages, which only take
    part. Every rank of the student must call it. Raises CheckpointError as `load_model` does.
    """
    model = config.model
    wanted = _shards(model, layout, ids.size, params_dtype) if layout.is_last_stage else {}
    loaded, checkpoint = load_weights(wanted, Path(config.checkpoint), f"teacher {config.name!r}", ids)
    if not wanted:
        return None, checkpoint
    weight = loaded[_key(model)].to(layout.device)
    bias = loaded[BIAS].to(layout.device) if model.add_head_bias else None
    return TeacherHead(weight, HeadOptions(bias, model.logit_scale, model.final_logit_softcapping)), checkpoint


def _key(model: ModelConfig) -> str:
    return EMBEDDING if model.share_embeddings_and_output_weights else HEAD


def _shards(model: ModelConfig, layout: Layout, vocab_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """This rank's rows of the head, to be filled; padding may differ from that of the checkpoint."""
    tp_group = layout.groups.tp
    rows = padded_vocab_size(model, vocab_size, tp_group.size()) // tp_group.size()
    tensors = {_key(model): torch.zeros(rows, model.hidden_size, dtype=dtype)}
    if model.add_head_bias:
        tensors[BIAS] = torch.zeros(rows, dtype=dtype)
    return {
        key: ShardedTensor.from_rank_offsets(
            key,
            tensor,
            (0, tp_group.rank(), tp_group.size()),
            replica_id=layout.groups.dp_cp.rank(),
            allow_shape_mismatch=True,
        )
        for key, tensor in tensors.items()
    }
