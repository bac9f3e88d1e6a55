"""Models of Phi-3's architecture, Phi-4-mini among them, of which Bridge has no conversion: ours, in its registry.

Hugging Face keeps queries, keys and values in one matrix, [q; k; v], and gate and up projection in another. "longrope"
multiplies the sines and cosines of a position by a constant, of which megatron-core knows nothing: it is folded into
the rows of q and k that they rotate. It also stretches the positions of sequences longer than those of the first
training; such sequences are refused.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    ConcatenatedQKVMapping,
    GatedMLPMapping,
    MegatronParamMapping,
)
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn
from transformers import Phi3ForCausalLM

from nemo_xtoken.errors import ConfigError

SAME_NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "decoder.layers.*.self_attention.linear_qkv.layer_norm_weight": "model.layers.*.input_layernorm.weight",
    "decoder.layers.*.input_layernorm.weight": "model.layers.*.input_layernorm.weight",
    "decoder.layers.*.mlp.linear_fc1.layer_norm_weight": "model.layers.*.post_attention_layernorm.weight",
    "decoder.layers.*.pre_mlp_layernorm.weight": "model.layers.*.post_attention_layernorm.weight",
    "decoder.layers.*.self_attention.linear_proj.weight": "model.layers.*.self_attn.o_proj.weight",
    "decoder.layers.*.mlp.linear_fc2.weight": "model.layers.*.mlp.down_proj.weight",
}
"""Weights that are alike on both sides, with norms as in Transformer Engine's layers and in local ones."""


@dataclass
class Phi3Provider(GPTModelProvider):
    """Bridge's provider with what Phi's positions need.

    rotary_factor     what sines and cosines are multiplied by
    longest_sequence  tokens up to which positions are not stretched and every token sees all before it; None: any
    """

    rotary_factor: float = 1.0
    longest_sequence: int | None = None

    def provide(self, *arguments: Any, **options: Any) -> GPTModel:
        """The model. Raises ConfigError for sequences that are too long for it."""
        if self.longest_sequence is not None and self.seq_length > self.longest_sequence:
            raise ConfigError(
                f"this model of Phi-3's architecture stretches or cuts attention beyond {self.longest_sequence} tokens"
                f", of which megatron-core knows nothing, got sequences of {self.seq_length}; prepare shorter ones"
            )
        return super().provide(*arguments, **options)


@MegatronModelBridge.register_bridge(source=Phi3ForCausalLM, target=GPTModel, provider=Phi3Provider, model_type="phi3")
class Phi3Bridge(MegatronModelBridge):
    """The conversion, found by `AutoBridge` once this module is imported."""

    def provider_bridge(self, hf_pretrained: Any) -> Phi3Provider:
        """The provider of a config. Raises ConfigError where positions are stretched from the first token on."""
        provider = super().provider_bridge(hf_pretrained)
        provider.normalization, provider.position_embedding_type = "RMSNorm", "rope"
        provider.gated_linear_unit, provider.add_bias_linear = True, False
        provider.hidden_dropout = 0.0
        config = hf_pretrained.config
        limits = [config.sliding_window or math.inf]
        if config.rope_scaling:
            provider.rotary_factor = rotary_factor(config)
            limits.append(config.original_max_position_embeddings)
        if min(limits) < math.inf:
            provider.longest_sequence = int(min(limits))
            provider.seq_length = min(provider.seq_length, provider.longest_sequence)
        return provider

    def mapping_registry(self) -> MegatronMappingRegistry:
        """Where each weight goes."""
        mappings = [AutoMapping(megatron_param=ours, hf_param=theirs) for ours, theirs in SAME_NAMES.items()]
        return MegatronMappingRegistry(
            *mappings,
            RotatedQKVMapping(
                "decoder.layers.*.self_attention.linear_qkv.weight", "model.layers.*.self_attn.qkv_proj.weight"
            ),
            FusedGatedMLPMapping("decoder.layers.*.mlp.linear_fc1.weight", "model.layers.*.mlp.gate_up_proj.weight"),
        )


def rotary_factor(config: Any) -> float:
    """What transformers' "longrope" multiplies sines and cosines by.

    Raises ConfigError where it stretches the positions of short sequences, too.
    """
    if any(factor != 1 for factor in config.rope_scaling["short_factor"]):
        raise ConfigError(
            "Megatron-Bridge can't import this model of Phi-3's architecture: it stretches the positions of short "
            "sequences too, of which megatron-core knows nothing; take another model"
        )
    longest, first = config.max_position_embeddings, config.original_max_position_embeddings
    return math.sqrt(1 + math.log(longest / first) / math.log(first)) if longest > first else 1.0


class _Heads(NamedTuple):
    """Rows of [q; k; v]: `rotated` ones of `size` in each of `num_heads` heads of q and k times `factor`."""

    num_heads: int
    size: int
    rotated: int
    factor: float

    def scale(self, qkv: Tensor, factor: float) -> Tensor:
        scaled = qkv.clone()
        heads = scaled[: self.num_heads * self.size].view(self.num_heads, self.size, -1)
        heads[:, : self.rotated] *= factor
        return scaled


class RotatedQKVMapping(ConcatenatedQKVMapping):
    """[q; k; v] of Hugging Face and groups of heads of Megatron's, which hold the factor of sines and cosines."""

    def hf_to_megatron(self, hf_weights: Tensor, megatron_module: nn.Module) -> Tensor:
        """Rank 0 has the weights."""
        if self.tp_rank == 0:
            heads = _heads(self._get_config(megatron_module))
            hf_weights = heads.scale(hf_weights, heads.factor)
        return super().hf_to_megatron(hf_weights, megatron_module)

    def megatron_to_hf(self, megatron_weights: Tensor | None, megatron_module: nn.Module | None) -> dict[str, Tensor]:
        """Every stage takes part, the one that has the layer with its module."""
        heads = None if megatron_module is None else _heads(self._get_config(megatron_module))
        heads = self.broadcast_obj_from_pp_rank(heads, "rotated_heads")
        found = super().megatron_to_hf(megatron_weights, megatron_module)
        return {name: heads.scale(weights, 1 / heads.factor) for name, weights in found.items()}


def _heads(config: Any) -> _Heads:
    return _Heads(
        num_heads=config.num_attention_heads + config.num_query_groups,
        size=config.kv_channels,
        rotated=int(config.kv_channels * config.rotary_percent),
        factor=config.rotary_factor,
    )


class FusedGatedMLPMapping(MegatronParamMapping[Tensor]):
    """[gate; up] in one matrix on both sides; under tensor parallelism a shard of Megatron's has a part of either."""

    def __init__(self, megatron_param: str, hf_param: str) -> None:
        super().__init__(megatron_param, hf_param)
        self._parted = GatedMLPMapping(megatron_param, gate=f"{hf_param}.gate", up=f"{hf_param}.up")

    def hf_to_megatron(self, hf_weights: Tensor, megatron_module: nn.Module) -> Tensor:
        """Rank 0 has the weights."""
        gate, up = (None, None) if hf_weights is None else torch.chunk(hf_weights, 2)
        return self._parted.hf_to_megatron({"gate": gate, "up": up}, megatron_module)

    def megatron_to_hf(self, megatron_weights: Tensor | None, megatron_module: nn.Module | None) -> dict[str, Tensor]:
        """Every stage takes part."""
        parts = self._parted.megatron_to_hf(megatron_weights, megatron_module)
        return {str(self.hf_param): torch.cat(list(parts.values()))} if parts else {}
