"""The three products of a linear layer with operands in FP8, accumulated in fp32: y = x·W', dx = g·W, dW = g'·x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.fp8.rounding import Rounding


def fp8_linear(x: Tensor, weight: Tensor, rounding: Rounding) -> Tensor:
    """[..., out] of x [..., in] and weight [out, in], in x's dtype; the gradients are products in FP8 too.

    torch equivalent without rounding: torch.nn.functional.linear(x, weight).
    """
    product: Any = _Product
    return product.apply(x, weight, rounding)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rounding: Rounding) -> Tensor:  # type: ignore[override]
        operands = rounding.operands(x.reshape(-1, x.shape[-1]), weight)
        ctx.save_for_backward(operands.x_of_weight_gradient, operands.weight_of_gradient)
        ctx.rounding, ctx.x_like, ctx.weight_dtype = rounding, (x.shape, x.dtype), weight.dtype
        return (operands.x @ operands.weight.t()).to(x.dtype).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        shape, dtype = ctx.x_like
        by_row, by_column = ctx.rounding.gradients(gradient.reshape(-1, gradient.shape[-1]))
        return (by_row @ weight).to(dtype).reshape(shape), (by_column.t() @ x).to(ctx.weight_dtype), None
