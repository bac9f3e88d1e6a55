"""Whether a model comes out even in a layout, whatever framework its config is from."""

from __future__ import annotations

import math
from typing import Any

from nemo_xtoken.errors import ConfigError


def check_model(name: str, model: Any, sequence_length: int, layout: Any = None) -> None:
    """Raises ConfigError for heads, ids or sequences of the model that its layout can't cut.

    model   a TransformerConfig with `vocab_size`, or what has its fields
    layout  what has tensor_model_parallel_size, context_parallel_size and sequence_parallel; None: the model itself
    """
    layout = layout or model
    tp_size, cp_size = layout.tensor_model_parallel_size, layout.context_parallel_size
    of_tp = "tensor_model_parallel_size"
    even(f"num_attention_heads of {name}", model.num_attention_heads, of_tp, tp_size)
    even(f"num_query_groups of {name}", model.num_query_groups or model.num_attention_heads, of_tp, tp_size)
    if model.vocab_size is not None and not getattr(model, "should_pad_vocab", False):
        even(f"vocab_size of {name}", model.vocab_size, of_tp, tp_size)
    parts = tp_size if layout.sequence_parallel else 1
    divisor = parts if cp_size == 1 else cp_size * math.lcm(2, parts)
    even(
        f"the sequence length of {name}",
        sequence_length,
        "the parts that cp and sequence parallelism cut",
        divisor,
    )


def even(what: str, number: int, by: str, divisor: int) -> None:
    """Raises ConfigError where the number is not divisible."""
    if number % divisor:
        raise ConfigError(f"{what}, {number}, is not divisible by {by}, {divisor}; change one of them")
