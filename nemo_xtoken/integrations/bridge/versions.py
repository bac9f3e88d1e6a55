"""What differs between the releases of Megatron-Bridge."""

from __future__ import annotations

from typing import Any


def validation_of(config: Any) -> Any:
    """The part of a ConfigContainer that has `eval_iters` and `eval_interval`: `validation`, and in 0.3 `train`."""
    return getattr(config, "validation", config.train)
