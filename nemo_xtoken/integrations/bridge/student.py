"""The student: Bridge's model with its head tapped, and the balance of the losses in its checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.head_tap import tap_head

BALANCE_MODULE = "distillation_balance"
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


def prepare_student(model: GPTModel, balance: Balance) -> None:
    """Make the model that has the head hand out hidden states and keep the balance, in place."""
    if model.post_process:
        tap_head(model)
        model.add_module(BALANCE_MODULE, BalanceInCheckpoint(balance))
