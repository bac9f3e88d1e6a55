"""What differs between the releases of Megatron-Bridge."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from nemo_xtoken.errors import UnavailableError


def validation_of(config: Any) -> Any:
    """The part of a ConfigContainer that has `eval_iters` and `eval_interval`: `validation`, and in 0.3 `train`."""
    return getattr(config, "validation", config.train)


def check_export() -> None:
    """Raises UnavailableError for a release whose exported students were not compared with the trained ones."""
    found = version("megatron-bridge")
    if not found.startswith(("0.3.", "0.6.")):
        raise UnavailableError(
            f"export was tested with Megatron-Bridge 0.3.1 and 0.6.2 only, and {found} is installed; take one of them"
        )
