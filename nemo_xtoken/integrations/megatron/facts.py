"""What megatron-core will use on this machine, for `doctor`. Imports neither megatron-core nor CUDA libraries."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

MISSING = "not installed"
TORCH_OPTIMIZER = "torch AdamW"


def megatron_facts() -> dict[str, str]:
    """Versions, and which optimizer, norm, layer spec and communication backend a run on `device: cuda` gets here."""
    return {
        "megatron-core": version("megatron-core"),
        "Transformer Engine": version("transformer-engine"),
        "apex": "installed" if has_apex() else MISSING,
        "optimizer": which_optimizer(),
        "norm": which_norm(),
        "layers": "Transformer Engine"
        if has_transformer_engine() and torch.cuda.is_available()
        else "megatron-core local",
        "communication": "nccl" if torch.cuda.is_available() else "gloo",
    }


def version(distribution: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's torch modules can be looked up."""
    return _can_find("transformer_engine.pytorch")


def has_apex() -> bool:
    """Whether NVIDIA's apex is here: the package of that name on PyPI has no optimizers."""
    return _can_find("apex.optimizers")


def which_optimizer() -> str:
    """The Adam that megatron-core takes, in its own order of preference."""
    if has_transformer_engine():
        return "Transformer Engine FusedAdam"
    return "apex FusedAdam" if has_apex() else TORCH_OPTIMIZER


def which_norm() -> str:
    """The norm that megatron-core's layer spec takes."""
    if has_transformer_engine() and torch.cuda.is_available():
        return "Transformer Engine TENorm"
    return "apex FusedLayerNorm" if has_apex() else "torch LayerNorm / RMSNorm"


def _can_find(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
