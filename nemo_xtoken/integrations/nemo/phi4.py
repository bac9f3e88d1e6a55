"""Phi-4-mini, which NeMo has neither a config nor a conversion of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm.gpt.model.phi3mini import Phi3Config
from nemo.lightning import io
from nemo.lightning.io.state import TransformCTX, TransformFns
from nemo.lightning.pytorch.utils import dtype_from_hf
from torch import Tensor
from transformers import Phi3Config as HuggingFaceConfig

from nemo_xtoken.errors import ConfigError

LONGEST = 4096
"""Tokens up to which Phi-4-mini's positions are not stretched."""

HEAD_BY_HEAD = "decoder.layers.*.self_attention.linear_qkv"


@dataclass
class Phi4MiniConfig(Phi3Config):
    """microsoft/Phi-4-mini-instruct: grouped queries, tied embeddings, three quarters of each head rotated.

    Its "longrope" scaling multiplies sines and cosines by a constant, which `Phi4MiniImporter` folds into the weights.
    Raises ConfigError for sequences beyond those whose positions are not stretched.
    """

    num_layers: int = 32
    hidden_size: int = 3072
    ffn_hidden_size: int = 8192
    num_attention_heads: int = 24
    num_query_groups: int = 8
    rotary_base: int = 10000
    rotary_percent: float = 0.75
    vocab_size: int = 200064
    layernorm_epsilon: float = 1e-5
    share_embeddings_and_output_weights: bool = True
    seq_length: int = LONGEST

    def __post_init__(self) -> None:
        if self.seq_length > LONGEST:
            raise ConfigError(
                f"Phi-4-mini stretches its positions beyond {LONGEST} tokens, got sequences of {self.seq_length}; set "
                f"teacher_seq_length, or its entry in teacher_lengths, to {LONGEST}"
            )
        super().__post_init__()


class Phi4MiniImporter(io.ModelConnector):
    """Config and weights of a Hugging Face model of Phi-3's architecture, Phi-4-mini among them; see `huggingface`."""

    @property
    def config(self) -> Phi4MiniConfig:
        """Raises ConfigError where positions are stretched from the first token on."""
        source = HuggingFaceConfig.from_pretrained(str(self))
        factors = (source.rope_scaling or {}).get("short_factor", [])
        if any(factor != 1 for factor in factors):
            raise ConfigError(f"{self} stretches the positions of short sequences too, of which NeMo knows nothing")
        dtype = dtype_from_hf(source)
        return Phi4MiniConfig(
            num_layers=source.num_hidden_layers,
            hidden_size=source.hidden_size,
            ffn_hidden_size=source.intermediate_size,
            num_attention_heads=source.num_attention_heads,
            num_query_groups=source.num_key_value_heads,
            init_method_std=source.initializer_range,
            layernorm_epsilon=source.rms_norm_eps,
            rotary_base=source.rope_theta,
            rotary_percent=source.partial_rotary_factor,
            vocab_size=source.vocab_size,
            share_embeddings_and_output_weights=source.tie_word_embeddings,
            seq_length=min(source.original_max_position_embeddings, LONGEST),
            fp16=dtype == torch.float16,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
        )

    def convert_state(self, source: Any, target: Any) -> Any:
        """Copy the weights of a Hugging Face model into one with the names of NeMo's checkpoints."""
        mapping = {
            "model.embed_tokens.weight": "embedding.word_embeddings.weight",
            "model.layers.*.self_attn.o_proj.weight": "decoder.layers.*.self_attention.linear_proj.weight",
            "model.layers.*.mlp.gate_up_proj.weight": "decoder.layers.*.mlp.linear_fc1.weight",
            "model.layers.*.mlp.down_proj.weight": "decoder.layers.*.mlp.linear_fc2.weight",
            "model.layers.*.input_layernorm.weight": f"{HEAD_BY_HEAD}.layer_norm_weight",
            "model.layers.*.post_attention_layernorm.weight": "decoder.layers.*.mlp.linear_fc1.layer_norm_weight",
            "model.norm.weight": "decoder.final_layernorm.weight",
        }
        if not source.config.tie_word_embeddings:
            mapping["lm_head.weight"] = "output_layer.weight"
        heads = io.state_transform(
            source_key="model.layers.*.self_attn.qkv_proj.weight", target_key=f"{HEAD_BY_HEAD}.weight", fn=_merge_heads
        )
        return io.apply_transforms(source, target, mapping=mapping, transforms=[heads])


def _merge_heads(ctx: TransformCTX, qkv: Tensor) -> Tensor:
    """[q; k; v] -> groups of heads, with the factor of sines and cosines in the rows that they rotate."""
    config, source = ctx.target.config, ctx.source
    head_size = config.kv_channels
    sizes = [heads * head_size for heads in (config.num_attention_heads, *[config.num_query_groups] * 2)]
    q, k, v = qkv.split(sizes)
    factor = source.model.rotary_emb.attention_scaling
    q, k = (_scale_rotated(x, head_size, config, factor) for x in (q, k))
    return TransformFns.merge_qkv(ctx, q, k, v)


def _scale_rotated(x: Tensor, head_size: int, config: TransformerConfig, factor: float) -> Tensor:
    heads = x.clone().view(-1, head_size, x.shape[1])
    heads[:, : int(head_size * config.rotary_percent)] *= factor  # type: ignore[attr-defined]
    return heads.view_as(x)
