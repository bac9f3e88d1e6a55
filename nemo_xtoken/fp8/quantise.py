"""Rounds tensors to FP8 with a scale per tensor, per block of 128, or per 32 values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.fp8.formats import LARGEST, decoded, is_zero, saturating_cast
from nemo_xtoken.fp8.scales import current_scale, power_of, shared_exponent

BLOCK = 128
MX_BLOCK = 32


class Quantised(NamedTuple):
    """values: FP8, of the tensor's shape. inverse: fp32, broadcasts against the values; their product is the tensor."""

    values: Tensor
    inverse: Tensor

    def dequantised(self) -> Tensor:
        """What a tensor core multiplies, in fp32."""
        return decoded(self.values).mul_(self.inverse)


def per_tensor(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Quantised:
    """One scale, a tensor without dimensions, for all values. TE: common/cast/fp8/quantize_fp8.cuh."""
    return Quantised(saturating_cast(tensor.float() * scale, dtype), scale.reciprocal())


def per_block(tensor: Tensor, dtype: torch.dtype, tile: tuple[int, int], *, power_of_two: bool = True) -> Quantised:
    """One scale for each tile of a matrix [rows, columns]; a last tile may be smaller.

    tile  (1, 128) for activations and gradients, (128, 128) for weights. TE: Float8BlockScaling; power_of_two=False
    is its NVTE_FP8_BLOCK_SCALING_FP32_SCALES=1.
    """
    blocks = _blocks(tensor.float(), tile)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True)
    scale = current_scale(amax, dtype, power_of_two=power_of_two, ceiling=torch.finfo(tensor.dtype).max)
    values = saturating_cast(blocks * scale, dtype)
    return _matrix(values, scale.reciprocal(), tensor)


def per_32(tensor: Tensor, dtype: torch.dtype) -> Quantised:
    """MXFP8 of a matrix [rows, columns]: 32 values of a row share a power of two; a last block may be smaller.

    TE and the OCP Microscaling specification, with the exponent rounded up as Blackwell's conversion does.
    """
    blocks = _blocks(tensor.float(), (1, MX_BLOCK))
    exponent = shared_exponent(blocks.abs().amax(dim=(1, 3), keepdim=True), dtype)
    values = saturating_cast(blocks * power_of(torch.where(exponent == 255, 255, 254 - exponent)), dtype)
    return _matrix(values, power_of(exponent), tensor)


def out_of_range(tensor: Tensor, quantised: Quantised) -> tuple[Tensor, Tensor]:
    """How many values that are not zero became zero, and how many were beyond the largest number; [] int64 each."""
    scaled = tensor.float() / quantised.inverse
    underflow = (tensor != 0) & is_zero(quantised.values)
    overflow = scaled.abs() > LARGEST[quantised.values.dtype]
    return underflow.sum(), overflow.sum()


def _blocks(tensor: Tensor, tile: tuple[int, int]) -> Tensor:
    """[row blocks, tile rows, column blocks, tile columns], filled up with zeros."""
    rows, columns = tensor.shape
    padded = torch.nn.functional.pad(tensor, (0, -columns % tile[1], 0, -rows % tile[0]))
    return padded.reshape(padded.shape[0] // tile[0], tile[0], padded.shape[1] // tile[1], tile[1])


def _matrix(values: Tensor, inverse: Tensor, like: Tensor) -> Quantised:
    """The blocks as a matrix again, without the filling, with a factor for each value."""
    rows, columns = like.shape
    size = values.shape[0] * values.shape[1], values.shape[2] * values.shape[3]
    whole = inverse.expand(values.shape).reshape(size)[:rows, :columns]
    return Quantised(values.reshape(size)[:rows, :columns], whole)
