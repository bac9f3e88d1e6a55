"""A model's shape and its layout over ranks; part of `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_xtoken.errors import require, require_positive

DIMENSIONS = ("tensor_model", "pipeline_model", "virtual_pipeline_model", "context", "data")
"""Of Megatron's layouts, as its keys name them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Megatron-core GPT. Names are TransformerConfig's.

    vocab_size  rows of the head before padding; null takes the tokenizer's size from the prepared data
    make_vocab_size_divisible_by  the head is padded to a multiple of this times the tensor parallel size
    add_head_bias  the head has a bias, one number per token
    logit_scale    the logits are times this: Cohere's logit_scale, 1 / logits_scaling of Granite
    final_logit_softcapping  Gemma 2's: the logits are softcapping·tanh(logits / softcapping); null for none
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int | None = None
    ffn_hidden_size: int | None = None
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 8
    normalization: Literal["LayerNorm", "RMSNorm"] = "RMSNorm"
    activation: Literal["gelu", "swiglu"] = "swiglu"
    rotary_base: int = 10000
    share_embeddings_and_output_weights: bool = False
    add_head_bias: bool = False
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None
    init_method_std: float = 0.02

    def __post_init__(self) -> None:
        require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "make_vocab_size_divisible_by", "rotary_base"
        )
        require(
            self.logit_scale > 0,
            f"logit_scale must be positive, got {self.logit_scale}; Granite's logits_scaling divides",
        )
        require(
            self.final_logit_softcapping is None or self.final_logit_softcapping > 0,
            f"final_logit_softcapping must be null or positive, got {self.final_logit_softcapping}",
        )
        heads, groups = self.num_attention_heads, self.num_query_groups or self.num_attention_heads
        require(
            self.hidden_size % heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}",
        )
        require(heads % groups == 0, f"num_attention_heads {heads} is not divisible by num_query_groups {groups}")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Megatron's layout of the student. world size = tensor x pipeline x context x data.

    virtual_pipeline_model_parallel_size  pieces of a stage's layers, which take turns: a shorter pipeline bubble
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False

    def __post_init__(self) -> None:
        require_positive(self, *(f"{dimension}_parallel_size" for dimension in DIMENSIONS))
        require(
            not self.sequence_parallel or self.tensor_model_parallel_size > 1,
            "sequence_parallel needs tensor_model_parallel_size > 1",
        )
        require(
            self.virtual_pipeline_model_parallel_size == 1 or self.pipeline_model_parallel_size > 1,
            "virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size > 1",
        )

    @property
    def world_size(self) -> int:
        """Number of ranks of the run."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
        )
