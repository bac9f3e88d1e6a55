"""Reads a model's weights out of a checkpoint of any layout, and says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt import GPTModel

from nemo_xtoken.errors import CheckpointError
from nemo_xtoken.integrations.megatron.checkpoint_files import find_checkpoint

METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
"""Megatron's options for what is saved: an optimizer that any layout can load."""

MOST_NAMED = 3


class HeadIds(NamedTuple):
    """The ids that a model's head is over: how many real ones, and the fingerprint of their tokenizer."""

    size: int
    fingerprint: str


def load_model(model: GPTModel | None, path: Path, owner: str, ids: HeadIds) -> Path:
    """Load the weights of the latest checkpoint of a run directory, or of one checkpoint. Every rank must call it.

    A rank without a model (None) only takes part. Raises CheckpointError where there is none, or it is of another
    model; `owner` begins the message. Returns the checkpoint's path.
    """
    wanted: dict[str, Any] = {} if model is None else model.sharded_state_dict(metadata=dict(METADATA))
    loaded, checkpoint = load_weights(wanted, path, owner, ids)
    if model is not None:
        model.load_state_dict(loaded)
    return checkpoint


def load_weights(wanted: dict[str, Any], path: Path, owner: str, ids: HeadIds) -> tuple[dict[str, Any], Path]:
    """Some of a model's weights, as `load_model` finds and checks them, and their checkpoint.

    wanted: this rank's shards of them, by key; may be empty. Every rank must call it.
    """
    checkpoint = _the_same_on_every_rank(find_checkpoint(path, owner))
    check_fits(wanted, checkpoint, owner, ids)
    loaded: Any = dist_checkpointing.load({"model": wanted}, str(checkpoint))
    return loaded.get("model", {}), checkpoint


def check_fits(wanted: dict[str, Any], checkpoint: Path, owner: str, ids: HeadIds) -> None:
    """Raises CheckpointError naming the weights that the checkpoint lacks or has in another shape, or other ids."""
    try:
        stored = dist_checkpointing.load_tensors_metadata(str(checkpoint))
        stored_ids = HeadIds(*dist_checkpointing.load_common_state_dict(str(checkpoint))["head_ids"])
    except Exception as error:
        raise CheckpointError(f"{owner}: cannot read checkpoint {checkpoint}: {error}") from error
    problems = [f"it has {stored_ids.size} token ids and not {ids.size}"] if stored_ids.size != ids.size else []
    if stored_ids.fingerprint != ids.fingerprint:
        problems.append("it was trained with another tokenizer")
    problems += [
        problem
        for tensor in wanted.values()
        if isinstance(tensor, ShardedTensor)
        for problem in _problems(tensor, stored)
    ]
    if problems:
        more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise CheckpointError(
            f"{owner}: checkpoint {checkpoint} is of another model: {'; '.join(problems[:MOST_NAMED])}{more}; "
            "use the checkpoint and the model config that belong together"
        )


def _problems(tensor: ShardedTensor, stored: Mapping[str, Any]) -> list[str]:
    if tensor.key not in stored:
        return [f"{tensor.key} is not in it"]
    shape, stored_shape = tuple(tensor.global_shape), tuple(stored[tensor.key].global_shape)
    # Rows of the vocabulary may differ by padding.
    first = 1 if tensor.allow_shape_mismatch else 0
    if shape[first:] != stored_shape[first:]:
        return [f"{tensor.key} should be {list(shape)} and is {list(stored_shape)}"]
    return []


def _the_same_on_every_rank(checkpoint: Path) -> Path:
    """Rank 0's choice: a run that is still going on may finish a checkpoint between two ranks' looks."""
    chosen = [str(checkpoint)]
    dist.broadcast_object_list(chosen, src=0)
    return Path(chosen[0])
