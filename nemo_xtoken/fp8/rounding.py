"""How one linear layer rounds its input, its weight and the gradient that comes back, by recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nemo_xtoken.fp8.delayed import History, updated
from nemo_xtoken.fp8.formats import forward_format, gradient_format
from nemo_xtoken.fp8.quantise import BLOCK, Quantised, per_32, per_block, per_tensor
from nemo_xtoken.fp8.scales import current_scale
from nemo_xtoken.fp8.statistics import Statistics
from nemo_xtoken.fp8_config import Fp8Config

ReduceMax = Callable[[Tensor], Tensor]
"""The largest of each entry over the ranks that hold parts of the same tensors."""

INPUT, WEIGHT, GRADIENT = "input", "weight", "gradient"
SLOTS = (INPUT, WEIGHT, GRADIENT)
FORWARD, BACKWARD = slice(0, 2), slice(2, 3)


class Operands(NamedTuple):
    """Dequantised, fp32. Blocks lie along what a product sums over, so each tensor is rounded once for each product.

    x [rows, in] and weight [out, in] for y; weight_of_gradient [out, in] for dx; x_of_weight_gradient [rows, in] for dW
    """

    x: Tensor
    weight: Tensor
    weight_of_gradient: Tensor
    x_of_weight_gradient: Tensor


class Rounding(Protocol):
    """What the product in FP8 asks of a recipe."""

    def operands(self, x: Tensor, weight: Tensor) -> Operands:
        """Of the forward product of x [rows, in] and weight [out, in], and what the backward ones need of them."""
        ...

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient [rows, out] as the operand of dx and of dW."""
        ...


class PerTensor:
    """One scale per tensor, from the tensor itself (`current`)."""

    def __init__(self, config: Fp8Config, statistics: Statistics, reduce_max: ReduceMax) -> None:
        self.config, self.statistics, self.reduce_max = config, statistics, reduce_max

    def operands(self, x: Tensor, weight: Tensor) -> Operands:
        """See `Rounding`."""
        scales = self._scales([x, weight], slice(0, 2), forward_format(self.config))
        rounded = self._rounded(INPUT, x, scales[0]), self._rounded(WEIGHT, weight, scales[1])
        return Operands(rounded[0], rounded[1], rounded[1], rounded[0])

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rounding`."""
        scales = self._scales([gradient], BACKWARD, gradient_format(self.config))
        rounded = self._rounded(GRADIENT, gradient, scales[0])
        return rounded, rounded

    def _scales(self, tensors: list[Tensor], slots: slice, dtype: torch.dtype) -> Tensor:
        del slots
        return current_scale(self.reduce_max(_amax(tensors)), dtype)

    def _rounded(self, slot: str, tensor: Tensor, scale: Tensor) -> Tensor:
        dtype = gradient_format(self.config) if slot == GRADIENT else forward_format(self.config)
        quantised = per_tensor(tensor, scale, dtype)
        self.statistics.add(slot, tensor, quantised)
        return quantised.dequantised()


class Delayed(PerTensor):
    """One scale per tensor, from the passes before.

    history     of the three tensors, wherever they are kept; changed in place
    recording   largest values are noted: in training, not in evaluation
    calibrating tensors pass as they are: scale 1, with which TE begins, makes zeros of the gradients of a mean
    """

    def __init__(self, config: Fp8Config, statistics: Statistics, history: Callable[[], History]) -> None:
        super().__init__(config, statistics, lambda amax: amax)
        self.history, self.recording, self.calibrating = history, True, False

    def update(self, passed: slice, reduce_max: ReduceMax) -> None:
        """After a pass, FORWARD or BACKWARD: the history moves on, with the largest values over all ranks."""
        dtype = gradient_format(self.config) if passed == BACKWARD else forward_format(self.config)
        history = self.history()
        amax, scale = history.amax[:, passed], history.scale[passed]
        amax[0] = reduce_max(amax[0])
        after = updated(History(amax, scale), dtype, self.config.amax_algorithm, self.config.margin)
        amax.copy_(after.amax)
        scale.copy_(after.scale)

    def _scales(self, tensors: list[Tensor], slots: slice, dtype: torch.dtype) -> Tensor:
        del dtype
        history = self.history()
        if self.recording:
            newest = history.amax[0, slots]
            newest.copy_(torch.maximum(newest, _amax(tensors)))
        return history.scale[slots].clone()

    def _rounded(self, slot: str, tensor: Tensor, scale: Tensor) -> Tensor:
        return tensor.float() if self.calibrating else super()._rounded(slot, tensor, scale)


class InBlocks:
    """One scale for 128 values, or 128 x 128 of a weight (`blockwise`), or for 32 values (`mxfp8`)."""

    def __init__(self, config: Fp8Config, statistics: Statistics) -> None:
        self.config, self.statistics = config, statistics

    def operands(self, x: Tensor, weight: Tensor) -> Operands:
        """See `Rounding`."""
        dtype = forward_format(self.config)
        by_row = self._rounded(INPUT, x, dtype)
        if self.config.recipe == "blockwise":
            square = per_block(weight, dtype, (BLOCK, BLOCK))
            self.statistics.add(WEIGHT, weight, square)
            of_weight = square.dequantised()
            return Operands(by_row, of_weight, of_weight, self._by_column(x, dtype))
        return Operands(
            by_row, self._rounded(WEIGHT, weight, dtype), self._by_column(weight, dtype), self._by_column(x, dtype)
        )

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rounding`."""
        dtype = gradient_format(self.config)
        return self._rounded(GRADIENT, gradient, dtype), self._by_column(gradient, dtype)

    def _rounded(self, slot: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        quantised = self._by_row(tensor, dtype)
        self.statistics.add(slot, tensor, quantised)
        return quantised.dequantised()

    def _by_column(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return self._by_row(tensor.t().contiguous(), dtype).dequantised().t()

    def _by_row(self, tensor: Tensor, dtype: torch.dtype) -> Quantised:
        return per_32(tensor, dtype) if self.config.recipe == "mxfp8" else per_block(tensor, dtype, (1, BLOCK))


def _amax(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.abs().max().float() for tensor in tensors])
