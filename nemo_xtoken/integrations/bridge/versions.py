"""What differs between the releases of Megatron-Bridge."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from nemo_xtoken.errors import UnavailableError


def validation_of(config: Any) -> Any:
    """The part of a ConfigContainer that has `eval_iters` and `eval_interval`: `validation`, and in 0.3 `train`."""
    return getattr(config, "validation", config.train)


def check_export() -> None:
    """Raises UnavailableError for a release whose exported students are not what was trained."""
    found = version("megatron-bridge")
    if not found.startswith("0.3."):
        raise UnavailableError(
            f"export was tested with Megatron-Bridge 0.3.1 only, and {found} is installed: with 0.6.2 an exported "
            "student had other logits than the trained one; take 0.3.1"
        )
