from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformer_engine.pytorch.quantization as te
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx
from transformer_engine.common.recipe import DelayedScaling
from transformer_engine.pytorch.custom_recipes.reference_current_scaling import CurrentScalingQuantizerRef

from nemo_xtoken.fp8.delayed import new_history, updated
from nemo_xtoken.fp8.formats import E4M3, E5M2, LARGEST
from nemo_xtoken.fp8.quantise import per_32, per_tensor
from nemo_xtoken.fp8.scales import current_scale, delayed_scale

Dtype = Any


def largest(dtype: Dtype) -> torch.Tensor:
    """As a tensor, so that TE's code divides, as its kernels do: by a number torch multiplies with the reciprocal."""
    return torch.tensor(LARGEST[dtype])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("margin", [0, 3])
def test_delayed_scales_are_transformer_engines(dtype: Dtype, margin: int) -> None:
    # Between these sizes TE's Python, which divides by 2^margin last, rounds as its kernel, which divides by it first.
    sizes = torch.rand(20000) * 60 - 30
    amax = torch.cat([10**sizes, torch.tensor([0.0, 1e-45, math.inf, math.nan])])
    previous = torch.rand(len(amax)) + 0.5
    expected = te._default_sf_compute(amax, previous.clone(), largest(dtype), margin)  # type: ignore[arg-type]
    assert torch.equal(delayed_scale(amax, previous, dtype, margin), expected)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("algorithm", ["max", "most_recent"])
@pytest.mark.parametrize("length", [1, 5])
def test_a_history_goes_the_way_of_transformer_engines(dtype: Dtype, algorithm: Any, length: int) -> None:
    recipe = DelayedScaling(amax_history_len=length, amax_compute_algo=algorithm, margin=1)
    state = te.DelayedScalingRecipeState(recipe, mode="forward", num_quantizers=3, device=torch.device("cpu"))
    history = new_history(length, 3)
    assert torch.equal(history.amax, state.amax_history)
    assert torch.equal(history.scale, state.scale)
    for _ in range(12):
        amax = torch.rand(3) * 100 + 1e-3  # TE's update in Python rolls on zeros as well, its kernel does not
        history.amax[0], state.amax_history[0] = amax, amax
        te._amax_and_scale_update(state.amax_history, state.scale, largest(dtype), recipe)  # type: ignore[arg-type]
        history = updated(history, dtype, algorithm, margin=1)
        assert torch.equal(history.amax, state.amax_history)
        assert torch.equal(history.scale, state.scale)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e5, 0.0])
def test_current_scaling_is_transformer_engines_reference(dtype: Dtype, power_of_two: bool, size: float) -> None:
    torch.manual_seed(1)
    tensor = torch.randn(32, 48) * size
    reference = CurrentScalingQuantizerRef(
        dtype=dtype, rowwise=True, columnwise=True, pow_2_scales=power_of_two, eps=0.0
    ).quantize(tensor)
    own = per_tensor(tensor, current_scale(tensor.abs().max(), dtype, power_of_two=power_of_two), dtype)
    assert reference.data is not None
    assert torch.equal(own.values.float(), reference.data.float())
    assert torch.equal(own.inverse.reshape(1), reference.scale.float().reshape(1))  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1.0, 1e5, 1e35])
def test_mxfp8_is_torchaos(dtype: Dtype, size: float) -> None:
    # torchao takes the logarithm in float32, which rounds down a largest value that is 1e-6 above a power of two times
    # 448: one block in 200,000. These numbers have none.
    torch.manual_seed(1)
    tensor = torch.randn(64, 96) * size * torch.randn(64, 96).exp2()
    tensor[3, :32] = 0
    exponents, values = to_mx(tensor, dtype, 32, ScaleCalculationMode.RCEIL)
    own = per_32(tensor, dtype)
    assert torch.equal(own.values.float(), values.float())
    assert torch.equal(own.inverse[:, ::32], exponents.float().reshape(64, 3))
    floor = to_mx(tensor, dtype, 32, ScaleCalculationMode.FLOOR)[1]
    assert not torch.equal(own.values.float(), floor.float())
