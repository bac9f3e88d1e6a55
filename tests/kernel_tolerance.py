"""How near a kernel's result has to be to its reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_near(value: Tensor | None, expected: Tensor | None, dtype: torch.dtype, device: str) -> None:
    """Fails unless a result, computed in this dtype on this device, has the expected value: float32 sums, rounded once.

    A GPU rounds to the nearest bfloat16, 2**-9 away at most; Triton's interpreter cuts off, less than 2**-7.
    """
    relative = 1e-5 if dtype == torch.float32 else 2**-7 if device == "cpu" else 2**-8
    torch.testing.assert_close(value, expected, rtol=relative, atol=1e-5)
