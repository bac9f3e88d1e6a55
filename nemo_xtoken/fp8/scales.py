"""Scales from the largest absolute value of a tensor or a block, as Transformer Engine computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.fp8.formats import LARGEST

FP32_LARGEST = torch.finfo(torch.float32).max
_SIGN_AND_EXPONENT = -(1 << 23)
_E8M0_LARGEST, _E8M0_NAN = 0xFE, 0xFF
_SMALLEST_POWER = 2.0**-127
_HALF_MANTISSA = 1 << 22


def delayed_scale(amax: Tensor, previous: Tensor, dtype: torch.dtype, margin: int = 0) -> Tensor:
    """largest / amax / 2^margin; the previous scale where amax is zero, infinite or NaN. fp32, any shape.

    TE: `_default_sf_compute` of pytorch/quantization.py and the fused kernel of common/recipe/delayed_scaling.cu.
    """
    scale = torch.div(_number(LARGEST[dtype] * 2.0**-margin, amax), amax)
    scale = scale.clamp(max=FP32_LARGEST)
    return torch.where(torch.isfinite(amax) & (amax > 0), scale, previous)


def current_scale(
    amax: Tensor, dtype: torch.dtype, *, power_of_two: bool = False, ceiling: float = FP32_LARGEST
) -> Tensor:
    """largest / amax, 1 where amax is zero, infinite or NaN. fp32, any shape.

    power_of_two  rounded down to one
    ceiling       where the quotient is too large for fp32: for blocks, the largest number of the tensor's own type
    TE: `compute_scale_from_amax` of common/recipe/recipe_common.cuh.
    """
    scale = torch.div(_number(LARGEST[dtype], amax), amax)
    scale = torch.where(torch.isinf(scale), _number(ceiling, amax), scale)
    if power_of_two:
        scale = (scale.view(torch.int32) & _SIGN_AND_EXPONENT).view(torch.float32)
    return torch.where(torch.isfinite(amax) & (amax > 0), scale, torch.ones_like(scale))


def shared_exponent(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The biased exponent, int32, of the E8M0 scale that the values of an MXFP8 block are divided by.

    2^(e - 127) is amax / largest, rounded up to a power of two. TE: `float_to_e8m0` of common/util/ptx.cuh.
    """
    ratio = (amax * _number(1.0 / LARGEST[dtype], amax)).contiguous()
    bits = ratio.view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & ((1 << 23) - 1)
    halfway_to_subnormal = (exponent == 0) & (mantissa <= _HALF_MANTISSA)
    exponent = exponent + ((mantissa > 0) & (exponent != _E8M0_LARGEST) & ~halfway_to_subnormal).int()
    exponent = torch.where(ratio == 0, 0, exponent)
    exponent = torch.where(torch.isinf(ratio), _E8M0_LARGEST, exponent)
    return torch.where(torch.isnan(ratio), _E8M0_NAN, exponent)


def power_of(exponent: Tensor) -> Tensor:
    """2^(exponent - 127) of a biased exponent, fp32; NaN for 255."""
    power = (exponent << 23).view(torch.float32)
    power = torch.where(exponent == 0, _number(_SMALLEST_POWER, power), power)
    return torch.where(exponent == _E8M0_NAN, _number(float("nan"), power), power)


def _number(value: float, like: Tensor) -> Tensor:
    # As a tensor: torch turns `number / tensor` into a product with the reciprocal, which is rounded twice.
    return torch.tensor(value, dtype=torch.float32, device=like.device)
