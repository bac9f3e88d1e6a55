"""Parameters, products and states of a model, from its shape alone.

layer       h² + 2·h·g·d + h² (attention; g query groups of d = h / heads) + h·f·(3 gated, 2 else) + norms
embedding   V·h, the head another V·h unless it is tied; V padded for tp
products    2 per parameter and token forward, 4 backward; attention 2·2·s·h forward for a full sequence of s tokens
            (the causal mask spares half of it), the head's apart
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_xtoken.config import ModelConfig

ACTIVATION_NUMBERS = 34
"""Bytes per token, layer and hidden number that a bf16 layer keeps for its backward pass with attention that keeps no
scores (arXiv 2205.05198, section 4)."""


@dataclass(frozen=True)
class Shape:
    """A model over `vocab_size` ids, its matrices cut over tp and its layers over pp."""

    model: ModelConfig
    vocab_size: int
    tp: int = 1
    pp: int = 1

    @property
    def rows(self) -> int:
        """Rows of the head, padded."""
        multiple = self.model.make_vocab_size_divisible_by * self.tp
        return -(-self.vocab_size // multiple) * multiple

    @property
    def ffn(self) -> int:
        """Width of the feed-forward layer; Megatron's default is four times the hidden size."""
        return self.model.ffn_hidden_size or 4 * self.model.hidden_size

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer that tp cuts."""
        model = self.model
        width = model.hidden_size
        groups = model.num_query_groups or model.num_attention_heads
        keys_and_values = 2 * width * groups * (width // model.num_attention_heads)
        return 2 * width * width + keys_and_values + width * self.ffn * (3 if model.activation == "swiglu" else 2)

    @property
    def norm(self) -> int:
        """Parameters of one norm, whole on every tp rank."""
        return self.model.hidden_size * (2 if self.model.normalization == "LayerNorm" else 1)

    @property
    def head(self) -> int:
        """Parameters of the head on a tp rank."""
        bias = self.rows // self.tp if self.model.add_head_bias else 0
        return self.rows // self.tp * self.model.hidden_size + bias

    @property
    def layers(self) -> int:
        """Parameters of the layers of one pipeline stage on a tp rank."""
        return self.model.num_layers // self.pp * (self.layer_matrices // self.tp + 2 * self.norm)

    @property
    def largest_stage(self) -> int:
        """Parameters on a rank of the last pipeline stage, the one with the loss."""
        tied = self.model.share_embeddings_and_output_weights
        embedding = self.rows // self.tp * self.model.hidden_size if self.pp == 1 and not tied else 0
        return self.layers + self.norm + self.head + embedding

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        whole = Shape(self.model, self.vocab_size)
        return whole.largest_stage

    def forward_flops(self, length: int) -> float:
        """Of one token in a sequence of `length`, without the head."""
        attention = 2 * length * self.model.hidden_size  # both products, half masked
        return self.model.num_layers * (2 * self.layer_matrices + attention)

    def tensor_parallel_bytes(self, bytes_per_number: int) -> float:
        """That a tp rank sends for one token forward; twice that more backward. Two all-reduces a layer, each as a
        reduce-scatter and an all-gather."""
        per_layer = 2 * 2 * (self.tp - 1) / self.tp * self.model.hidden_size * bytes_per_number
        return self.model.num_layers / self.pp * per_layer

    @property
    def head_flops(self) -> float:
        """Of one token's logits."""
        return 2 * self.vocab_size * self.model.hidden_size

    def activations(self, tokens: int, bytes_per_number: int) -> float:
        """Bytes that one micro batch of this many tokens keeps for its backward pass on a rank of a stage."""
        layers = self.model.num_layers // self.pp
        return tokens * self.model.hidden_size * ACTIVATION_NUMBERS * (bytes_per_number / 2) * layers / self.tp
