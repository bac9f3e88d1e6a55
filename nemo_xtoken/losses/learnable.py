"""Learnable W: rows that stay non-negative and sum to 1 whatever an optimizer does to their parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def row_parameters(weights: Tensor, filled: Tensor) -> Tensor:
    """Parameters whose `row_weights` are the given ones: log weights, 0 where a row has no entry. [rows, K] both."""
    return torch.where(filled, weights.clamp_min(torch.finfo(weights.dtype).tiny).log(), 0.0)


def row_weights(parameters: Tensor, filled: Tensor) -> Tensor:
    """Softmax of each row over its entries: [rows, K], bool [rows, K] -> [rows, K]. An empty row stays 0.

    A row of one entry weighs 1 whatever its parameter, so exact matches do not move.
    """
    lowest = torch.finfo(parameters.dtype).min
    return parameters.masked_fill(~filled, lowest).softmax(-1).masked_fill(~filled, 0)
