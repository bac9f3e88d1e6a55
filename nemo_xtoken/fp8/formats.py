"""The two FP8 number formats and the cast into them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from nemo_xtoken.fp8_config import Fp8Config

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


def forward_format(config: Fp8Config) -> torch.dtype:
    """Of activations and weights."""
    del config  # both of TE's formats have E4M3 here
    return E4M3


def gradient_format(config: Fp8Config) -> torch.dtype:
    """Of the gradients that come into a layer."""
    return E5M2 if config.number_format == "hybrid" else E4M3


def saturating_cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 to FP8, to the nearest, ties to even; what is too large becomes the largest number, NaN stays NaN.

    PTX's cvt.rn.satfinite. torch's own cast makes infinity of what is too large for E5M2.
    """
    largest = LARGEST[dtype]
    return values.clamp(-largest, largest).to(dtype)


def decoded(values: Tensor) -> Tensor:
    """FP8 to fp32, exactly. torch equivalent: values.float(), which takes five times as long for E4M3 on a CPU."""
    if values.device.type != "cpu":
        return values.float()
    codes = values.view(torch.uint8).int().reshape(-1)
    return _numbers(values.dtype).index_select(0, codes).reshape(values.shape)


def is_zero(values: Tensor) -> Tensor:
    """Which FP8 numbers are zero, of either sign."""
    return values.view(torch.uint8).bitwise_left_shift(1) == 0


@cache
def _numbers(dtype: torch.dtype) -> Tensor:
    """[256] fp32: the number of each code."""
    return torch.arange(256).to(torch.uint8).view(dtype).float()
