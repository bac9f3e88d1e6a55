"""The precision of sums."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulated(x: Tensor) -> Tensor:
    """x in the precision of sums: float32, or float64 where x is."""
    return x if x.dtype == torch.float64 else x.float()
