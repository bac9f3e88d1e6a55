"""Tiny random models of the other families that Bridge converts, with norms that are not ones."""

# pyright: reportMissingImports=false
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
WINDOW = {"sliding_window": 8, "query_pre_attn_scalar": 16}
CONFIGS: dict[str, Any] = {
    "gemma": lambda size: GemmaConfig(vocab_size=size, head_dim=16, **SHAPE),
    "gemma2": lambda size: Gemma2Config(vocab_size=size, head_dim=16, **SHAPE, **WINDOW),
    # Layer 6 of each 6 is global.
    "gemma3": lambda size: Gemma3TextConfig(
        vocab_size=size, head_dim=16, **{**SHAPE, "num_hidden_layers": 6}, **WINDOW
    ),
    "mistral": lambda size: MistralConfig(vocab_size=size, head_dim=16, sliding_window=None, **SHAPE),
    "nemotron": lambda size: NemotronConfig(vocab_size=size, head_dim=16, **SHAPE),
    "phi": lambda size: phi_config(vocab_size=size),
    "qwen2": lambda size: Qwen2Config(vocab_size=size, **SHAPE),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, head_dim=16, **SHAPE),
}


def phi_config(**changes: Any) -> Phi3Config:
    """Grouped queries, three quarters of a head rotated, positions stretched beyond 64 tokens."""
    shape: dict[str, Any] = {
        "vocab_size": 304,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return Phi3Config(**{**shape, **changes})


def make(folder: Path, kind: str, size: int, tokenizer: Path) -> Path:
    """A model with `size` rows of its head, and the tokenizer of another one."""
    torch.manual_seed(3)
    config: PretrainedConfig = CONFIGS[kind](size)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
        # transformers fills the padding's row with zeros, and it is the first token of these documents.
        model.get_input_embeddings().weight[0] = 0.1 * torch.randn(SHAPE["hidden_size"])
    model.save_pretrained(folder)
    for path in tokenizer.glob("*token*"):
        shutil.copy(path, folder)
    return folder
