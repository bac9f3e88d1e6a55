from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken.fp8.delayed import History, new_history
from nemo_xtoken.fp8.product import fp8_linear
from nemo_xtoken.fp8.rounding import BACKWARD, FORWARD, Delayed, InBlocks, PerTensor, Rounding
from nemo_xtoken.fp8.statistics import Statistics, summary
from nemo_xtoken.fp8_config import Fp8Config


def same(amax: Tensor) -> Tensor:
    return amax


def rounding_of(recipe: Any, number_format: Any = None) -> Rounding:
    config = Fp8Config(recipe=recipe, format=number_format, backend="emulate")
    if recipe == "delayed":
        history = new_history(4, 3)
        return Delayed(config, Statistics(), lambda: history)
    return PerTensor(config, Statistics(), same) if recipe == "current" else InBlocks(config, Statistics())


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, weight, gradient = (torch.randn(256, 256, generator=generator) for _ in range(3))
    return x, weight, gradient


def products(rounding: Rounding | None) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dW of one layer."""
    x, weight, gradient = problem()
    x.requires_grad_()
    weight.requires_grad_()
    y = torch.nn.functional.linear(x, weight) if rounding is None else fp8_linear(x, weight, rounding)
    y.backward(gradient)
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad


def calibrated(rounding: Rounding) -> Rounding:
    if isinstance(rounding, Delayed):
        rounding.calibrating = True
        products(rounding)
        rounding.update(FORWARD, same)
        rounding.update(BACKWARD, same)
        rounding.calibrating = False
    return rounding


@pytest.mark.parametrize("recipe", ["delayed", "current", "blockwise", "mxfp8"])
@pytest.mark.parametrize("number_format", ["hybrid", "e4m3"])
def test_the_error_of_one_product_lies_in_the_band_of_its_format(recipe: str, number_format: str) -> None:
    """Two operands of 3 mantissa bits: 3.7 % of a product of normal numbers; with E5M2's 2 bits on one side 5.9 %."""
    exact, rounded = products(None), products(calibrated(rounding_of(recipe, number_format)))
    y, dx, dw = (float((a - b).norm() / b.norm()) for a, b in zip(rounded, exact, strict=True))
    backward = 0.059 if number_format == "hybrid" else 0.037
    assert y == pytest.approx(0.037, abs=0.003)
    assert dx == pytest.approx(backward, abs=0.004)
    assert dw == pytest.approx(backward, abs=0.004)


def two_layers(layers: tuple[Rounding, Rounding] | None) -> tuple[Tensor, Tensor]:
    """y and dx of one layer after the other."""
    x, weight, gradient = problem()
    other = torch.randn(256, 256, generator=torch.Generator().manual_seed(4))
    x.requires_grad_()
    hidden = x
    for i, parameter in enumerate((weight, other)):
        linear = torch.nn.functional.linear
        hidden = linear(hidden, parameter) if layers is None else fp8_linear(hidden, parameter, layers[i])
    hidden.backward(gradient)
    assert x.grad is not None
    return hidden.detach(), x.grad


@pytest.mark.parametrize(
    ("recipe", "backward"), [("delayed", 0.084), ("current", 0.084), ("blockwise", 0.054), ("mxfp8", 0.054)]
)
def test_the_errors_of_two_layers_add_up_as_independent_ones_do(recipe: str, backward: float) -> None:
    pair = calibrated_pair(recipe, two_layers)
    y, dx = (float((a - b).norm() / b.norm()) for a, b in zip(two_layers(pair), two_layers(None), strict=True))
    assert y == pytest.approx(0.054, abs=0.004)
    assert dx == pytest.approx(backward, abs=0.005)


def gradient_of_a_mean(rounding: tuple[Rounding, Rounding] | None) -> Tensor:
    """The first layer's weight gradient of two layers, of the mean over 65,536 outputs."""
    x, weight, other = problem()
    weights = weight.requires_grad_(), other.requires_grad_()
    hidden = x
    for i, layer in enumerate(weights):
        linear = torch.nn.functional.linear
        hidden = linear(hidden, layer) / 16 if rounding is None else fp8_linear(hidden, layer, rounding[i]) / 16
    hidden.square().mean().backward()
    assert weights[0].grad is not None
    return weights[0].grad


def test_without_a_calibration_the_first_gradients_of_a_mean_are_lost() -> None:
    """Scale 1 makes zeros of what is below 2^-17 (E5M2): a mean's gradients are."""
    exact = gradient_of_a_mean(None)
    pair = rounding_of("delayed"), rounding_of("delayed")
    lost = gradient_of_a_mean(pair)
    assert float((lost - exact).norm() / exact.norm()) > 0.9
    pair = calibrated_pair("delayed", gradient_of_a_mean)
    assert float((gradient_of_a_mean(pair) - exact).norm() / exact.norm()) < 0.12


def calibrated_pair(recipe: str, look: Callable[[tuple[Rounding, Rounding]], object]) -> tuple[Rounding, Rounding]:
    """Two layers that have seen one pass without rounding, where the recipe needs one."""
    pair = rounding_of(recipe), rounding_of(recipe)
    histories = [layer for layer in pair if isinstance(layer, Delayed)]
    for history in histories:
        history.calibrating = True
    look(pair)
    for history in histories:
        history.update(FORWARD, same)
        history.update(BACKWARD, same)
        history.calibrating = False
    return pair


def test_an_evaluation_notes_nothing() -> None:
    rounding = rounding_of("delayed")
    assert isinstance(rounding, Delayed)
    rounding.recording = False
    products(rounding)
    assert not rounding.history().amax.any()
    assert isinstance(rounding.history(), History)


def test_statistics_by_hand() -> None:
    config = Fp8Config(recipe="current", backend="emulate")
    statistics = Statistics()
    rounding = PerTensor(config, statistics, lambda amax: amax * 0 + 448.0)  # so that the scale is 1
    x = torch.tensor([[1.0, 0.0, 2.0**-12, 1000.0]])
    rounding.operands(x, torch.ones(1, 4))
    assert statistics.sums == {}
    statistics.collecting = True
    rounding.operands(x, torch.ones(1, 4))
    found = summary(statistics.sums["input"], statistics.largest["input"])
    assert found == {"amax": 1000.0, "scale": 1.0, "underflow": pytest.approx(1 / 3), "overflow": pytest.approx(1 / 3)}
    rounding.operands(x * 0, torch.ones(1, 4))
    assert summary(statistics.sums["input"], statistics.largest["input"])["amax"] == 1000.0
    statistics.clear()
    assert statistics.largest == {}


@pytest.mark.parametrize("recipe", ["blockwise", "mxfp8"])
def test_a_block_of_zeros_is_not_the_coarsest(recipe: str) -> None:
    """Its scale is 1, and that of 1/4 is 1,024 or more: rows that count in no loss have gradients of zero."""
    rounding = rounding_of(recipe, "e4m3")
    assert isinstance(rounding, InBlocks)
    rounding.statistics.collecting = True
    gradient = torch.full((64, 128), 0.25)
    gradient[:32] = 0
    rounding.gradients(gradient)
    assert summary(rounding.statistics.sums["gradient"], rounding.statistics.largest["gradient"]) == {
        "amax": 0.25, "scale": 1024, "underflow": 0, "overflow": 0
    }  # fmt: skip
