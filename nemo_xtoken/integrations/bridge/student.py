"""The student of a distillation: what its embedding must have, and what its checkpoints have besides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection

BALANCE_MODULE = "distillation_balance"
PROJECTIONS_MODULE = "distillation_projections"
RATIO = "ratio"


class BalanceInCheckpoint(nn.Module):
    """A part of the student that has no parameters, and saves and loads the balance with it.

    A checkpoint has it as a float64 tensor [1], NaN before the first step.
    """

    def __init__(self, balance: Balance) -> None:
        super().__init__()
        self.balance = balance

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """The ratio for Megatron's dist_checkpointing, the same on every rank that has it."""
        del metadata
        ratio = math.nan if self.balance.ratio is None else self.balance.ratio
        tensors = {RATIO: torch.tensor([ratio], dtype=torch.float64)}
        return make_sharded_tensors_for_checkpoint(tensors, prefix, sharded_offsets=sharded_offsets)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A checkpoint of a model that was not distilled has none, and leaves the balance as it is."""
        del args, kwargs
        ratio = state_dict.get(f"{prefix}{RATIO}")
        if ratio is not None:
            self.balance.load_state_dict({"ratio": None if ratio.isnan() else float(ratio)})


class ProjectionsInCheckpoint(nn.Module):
    """A part of the student that saves and loads each W that is trained, with its optimizer's state.

    A checkpoint has them as `projection.NAME.*`, cut over tp as the head is. They are no parameters of the student: its
    optimizer and precision do not touch them.
    """

    def __init__(self, projections: Sequence[LearntProjection]) -> None:
        super().__init__()
        self.projections = tuple(projections)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """This rank's parts for Megatron's dist_checkpointing."""
        del sharded_offsets, metadata
        return {
            f"{prefix}{projection.name}.{part}": tensor
            for projection in self.projections
            for part, tensor in projection.sharded_state_dict().items()
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A checkpoint of a model that was not distilled has none, and leaves them as they are."""
        del args, kwargs
        for projection in self.projections:
            own = f"{prefix}{projection.name}."
            loaded = {key.removeprefix(own): tensor for key, tensor in state_dict.items() if key.startswith(own)}
            if loaded:
                projection.load_state_dict(loaded)


def keep_in_checkpoint(model: GPTModel, balance: Balance, projections: Sequence[LearntProjection]) -> None:
    """Add both to the model that has the head, in place."""
    if model.post_process:
        model.add_module(BALANCE_MODULE, BalanceInCheckpoint(balance))
    if projections:
        model.add_module(PROJECTIONS_MODULE, ProjectionsInCheckpoint(projections))


def check_first_token(model: GPTModel, bos_id: int | None, device: torch.device) -> None:
    """Raises ConfigError, on every rank, where the embedding of the token that starts documents is all zeros.

    An RMS norm multiplies the gradient of zeros by 1 / sqrt(layernorm_epsilon), a thousand, and each norm of each layer
    does it again: the token sees itself alone, so attention and MLP give zeros as well. Every rank must call it.
    """
    zeros = torch.tensor([float(_is_zero(model, bos_id))], device=device)
    dist.all_reduce(zeros, op=dist.ReduceOp.MAX)
    if zeros.item():
        raise ConfigError(
            f"expected an embedding for token {bos_id}, which starts documents, got one of zeros: its gradient grows "
            "with each norm until it is infinite; give that row numbers (transformers fills the row of pad_token_id "
            "with zeros in a new model and does not train it: let the padding be another token, or none)"
        )


def _is_zero(model: GPTModel, bos_id: int | None) -> bool:
    """Whether this rank has that row [h], and no position is added to it."""
    if bos_id is None or not model.pre_process or model.position_embedding_type == "learned_absolute":
        return False
    rows: Any = model.embedding.word_embeddings
    is_here = rows.vocab_start_index <= bos_id < rows.vocab_end_index
    return is_here and not bool(rows.weight[bos_id - rows.vocab_start_index].any())
