"""What the student's checkpoints have besides the student: the balance of the losses, and each W that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

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
