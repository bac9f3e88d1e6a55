"""Gemma 3's layers where Transformer Engine is not: Bridge has them with Transformer Engine alone."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.gemma.gemma3_provider import Gemma3SelfAttention
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.dot_product_attention import DotProductAttention
from torch import Tensor

from nemo_xtoken.integrations.megatron.norm import TorchNorm


class WindowedAttention(DotProductAttention):
    """Attention of a layer that is local or global by `interleaved_attn_pattern`.

    In a local layer a token sees the `window_size` last tokens, itself among them, of its own document. megatron-core's
    own window takes the place of the documents' mask.
    """

    def __init__(self, config: Any, layer_number: int, *args: Any, **options: Any) -> None:
        is_local = layer_number % sum(config.interleaved_attn_pattern) != 0
        without_window = copy.copy(config)
        without_window.window_size = None
        super().__init__(without_window, layer_number, *args, **options)
        self.window = config.window_size if is_local else None

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *others: Any, **options: Any
    ) -> Tensor:
        """[s, b, heads/tp * d] of queries [s, b, heads/tp, d]; the mask is [b, 1, s, s], True where not allowed."""
        if self.window is not None:
            beyond = outside_window(query.shape[0], self.window, query.device)
            attention_mask = beyond if attention_mask is None else attention_mask | beyond
        return super().forward(query, key, value, attention_mask, *others, **options)


def outside_window(length: int, window: int, device: torch.device) -> Tensor:
    """[1, 1, length, length] bool: where a key is later than the query, or `window` tokens or more before it."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return ((distance < 0) | (distance >= window))[None, None]


class RowParallelThenNorm(RowParallelLinear):
    """A row-parallel layer and the norm of what it adds to the residual stream, by Bridge's names."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
        super().__init__(input_size, output_size, config=config, **options)
        self.post_layernorm = TorchNorm(config, output_size, config.layernorm_epsilon)

    def forward(self, input_: Tensor) -> Any:
        """([s, b, h], None) from [s, b, k/tp]."""
        output, bias = super().forward(input_)
        return self.post_layernorm(output), bias


AutoMapping.register_module_type(RowParallelThenNorm.__name__, "row")


def as_gemma3(block: Any) -> Any:
    """Local layers as Gemma 3 has them, in place."""
    for layer in block.layer_specs:
        attention, mlp = layer.submodules.self_attention, layer.submodules.mlp
        attention.module = Gemma3SelfAttention
        attention.submodules.core_attention = WindowedAttention
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = TorchNorm
        attention.submodules.linear_proj = mlp.submodules.linear_fc2 = RowParallelThenNorm
    return block
