"""Published models as providers of Bridge's, from their shapes alone: nothing is downloaded before weights are read."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from megatron.bridge import AutoBridge
from transformers import AutoConfig, PretrainedConfig

from nemo_xtoken.integrations.bridge.models import with_weights

LLAMA32: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "head_dim": 64,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
NEMOTRON4_15B = "nemotron4_15b"
SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B": {
        **LLAMA32,
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.2-3B": {
        **LLAMA32,
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
    "Qwen/Qwen3-4B": {
        **QWEN3,
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-32B": {
        **QWEN3,
        "num_hidden_layers": 64,
        "hidden_size": 5120,
        "num_attention_heads": 64,
        "intermediate_size": 25600,
        "tie_word_embeddings": False,
    },
    "microsoft/Phi-4-mini-instruct": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": 200064,
        "num_hidden_layers": 32,
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        # The long factors are for sequences that are refused.
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
        "sliding_window": 262144,
        "tie_word_embeddings": True,
    },
    "mistralai/Mistral-Nemo-Base-2407": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 131072,
        "num_hidden_layers": 40,
        "hidden_size": 5120,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "mistralai/Mistral-7B-v0.3": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 32768,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    NEMOTRON4_15B: {
        "model_type": "nemotron",
        "architectures": ["NemotronForCausalLM"],
        "vocab_size": 256000,
        "num_hidden_layers": 32,
        "hidden_size": 6144,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 24576,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
}
"""What the `config.json` of each says; that of Nemotron-4-15B, which is not on Hugging Face, would."""


def published(model: str, weights: str | None = None) -> Any:
    """The provider of one of `SHAPES`, which reads its weights, or those in a directory, when it builds the model."""
    shape = dict(SHAPES[model])
    config: PretrainedConfig = AutoConfig.for_model(shape.pop("model_type"), **shape)
    provider: Any = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
    provider.params_dtype, provider.bf16, provider.fp16 = torch.bfloat16, True, False
    return with_weights(provider, weights or model)
