"""Delayed scaling: the scale of a tensor comes from the largest values of the passes before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.fp8.scales import delayed_scale
from nemo_xtoken.fp8_config import AmaxAlgorithm


class History(NamedTuple):
    """amax: [length, tensors] fp32, row 0 collects the present pass, the newest before it is the last row.
    scale: [tensors] fp32."""

    amax: Tensor
    scale: Tensor


def new_history(length: int, tensors: int) -> History:
    """No pass yet, and scale 1, as TE begins."""
    return History(torch.zeros(length, tensors), torch.ones(tensors))


def updated(history: History, dtype: torch.dtype, algorithm: AmaxAlgorithm, margin: int) -> History:
    """The history after a pass whose largest values, over all ranks, are in row 0, and the scales for the next pass.

    A tensor of which nothing but zeros was seen keeps its history and its scale.
    TE: `kernel_bulk` of common/recipe/delayed_scaling.cu, the fused update that it does by default.
    """
    newest = history.amax[0]
    amax = history.amax.max(dim=0).values if algorithm == "max" else newest
    seen = newest != 0
    scale = delayed_scale(torch.where(seen, amax, 0), history.scale, dtype, margin)
    rolled = torch.roll(history.amax, -1, 0)
    rolled[0] = 0
    return History(torch.where(seen, rolled, history.amax), scale)
