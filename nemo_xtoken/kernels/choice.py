"""Which implementation of a kernel runs: its torch reference or the Triton program."""

from __future__ import annotations

import importlib.util
import os
from typing import get_args

import torch
from torch import Tensor

from nemo_xtoken.config import Implementation
from nemo_xtoken.errors import ConfigError, UnavailableError

TRITON_DTYPES = (torch.float32, torch.bfloat16)
"""What the Triton programs read and write; they add up in float32, so float64 is the reference's."""


def takes_triton(implementation: Implementation, x: Tensor) -> bool:
    """Whether the Triton program runs on x; "auto" takes it on CUDA tensors of its dtypes where triton is installed.

    Raises UnavailableError for "triton" where it can't run, and ConfigError for an unknown implementation.
    """
    if implementation not in get_args(Implementation):
        raise ConfigError(
            f"implementation must be one of {', '.join(get_args(Implementation))}, got {implementation!r}"
        )
    if implementation == "torch":
        return False
    if implementation == "auto":
        return x.is_cuda and x.dtype in TRITON_DTYPES and is_installed()
    lack = _lack(x)
    if lack is not None:
        raise UnavailableError(f"implementation='triton' {lack}, or take implementation='torch'")
    return True


def is_installed() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton programs run in Triton's interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _lack(x: Tensor) -> str | None:
    """What keeps the Triton programs from running on x, and what to do about it."""
    if not is_installed():
        return "needs triton, which is not installed: pip install 'nemo-xtoken[kernels]'"
    if not x.is_cuda and not is_interpreted():
        return f"needs CUDA tensors, got one on {x.device}: move it, set TRITON_INTERPRET=1 to try the program slowly"
    if x.dtype not in TRITON_DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}: convert it"
    return None
