"""The torch norm for layers that neither Transformer Engine nor apex serves."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


class TorchNorm:
    """Builds torch's LayerNorm or RMSNorm, as a layer spec wants it: a class.

    Unlike megatron-core's own wrapper it is allowed under sequence parallelism: its parameters are marked, so that
    Megatron adds up their gradients over tp.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        """The norm [hidden_size] -> [hidden_size] of this config."""
        kinds = (torch.nn.LayerNorm, torch.nn.RMSNorm)
        if config.layernorm_zero_centered_gamma:
            kinds = (ZeroCenteredLayerNorm, ZeroCenteredRMSNorm)
        kind = kinds[0] if config.normalization == "LayerNorm" else kinds[1]
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


class ZeroCenteredLayerNorm(torch.nn.LayerNorm):
    """A LayerNorm that scales by 1 + weight, as Nemotron has it."""

    def reset_parameters(self) -> None:
        """Nothing is scaled or moved."""
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., hidden_size], normalised over the last dimension."""
        return layer_norm(input, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


class ZeroCenteredRMSNorm(torch.nn.RMSNorm):
    """An RMSNorm that scales by 1 + weight."""

    def reset_parameters(self) -> None:
        """Nothing is scaled."""
        torch.nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size], normalised over the last dimension."""
        return rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)
