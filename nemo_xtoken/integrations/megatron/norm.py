"""The torch norm for layers that neither Transformer Engine nor apex serves."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class TorchNorm:
    """Builds torch's LayerNorm or RMSNorm, as a layer spec wants it: a class.

    Unlike megatron-core's own wrapper it is allowed under sequence parallelism: its parameters are marked, so that
    Megatron adds up their gradients over tp.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        """The norm [hidden_size] -> [hidden_size] of this config."""
        kind = torch.nn.LayerNorm if config.normalization == "LayerNorm" else torch.nn.RMSNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm
