from __future__ import annotations

import math

import pytest
import torch

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.fp8.delayed import History, new_history, updated
from nemo_xtoken.fp8.formats import E4M3, E5M2, LARGEST, decoded, is_zero, saturating_cast
from nemo_xtoken.fp8.quantise import out_of_range, per_32, per_block, per_tensor
from nemo_xtoken.fp8.scales import FP32_LARGEST, current_scale, delayed_scale, power_of, shared_exponent
from nemo_xtoken.fp8_config import Fp8Config

SPECIAL = [0.0, -0.0, 1e-45, 1e-38, 448.0, 449.0, 465.0, 57344.0, 1e6, 3e38, math.inf, -math.inf]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(rows, columns, generator=generator).exp2() ** 3
    return torch.randn(rows, columns, generator=generator) * spread


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_cast_saturates_where_torchs_own_makes_infinity(dtype: torch.dtype) -> None:
    largest = LARGEST[dtype]
    values = torch.tensor([*SPECIAL, math.nan])
    cast = saturating_cast(values, dtype).float()
    assert cast[:-1].abs().max() == largest
    assert cast[-1].isnan()
    assert saturating_cast(torch.tensor([-math.inf, math.inf]), dtype).float().tolist() == [-largest, largest]
    assert torch.tensor([1e6]).to(E5M2).isinf()  # what a cast alone would have done


def test_a_number_is_rounded_to_the_nearest_and_a_tie_to_even() -> None:
    # Between 16 and 32 E4M3 has every second number; 17 and 19 lie halfway.
    assert saturating_cast(torch.tensor([17.0, 17.1, 19.0]), E4M3).float().tolist() == [16.0, 18.0, 20.0]


@pytest.mark.parametrize(("dtype", "nans"), [(E4M3, 2), (E5M2, 6)])
def test_every_code_is_the_number_that_torch_makes_of_it(dtype: torch.dtype, nans: int) -> None:
    codes = torch.arange(256).to(torch.uint8).view(dtype).reshape(2, 128).t()
    numbers, expected = decoded(codes), codes.float()
    assert torch.equal(numbers.view(torch.int32), expected.view(torch.int32))  # the sign of zero and NaN as well
    assert numbers.isnan().sum() == nans
    assert torch.equal(is_zero(codes), expected == 0)
    assert is_zero(codes).sum() == 2


def test_the_scale_of_delayed_scaling_by_hand() -> None:
    amax, previous = torch.tensor([3.5, 0.0, math.inf, math.nan, 1e-45]), torch.full((5,), 7.0)
    assert delayed_scale(amax, previous, E4M3, margin=2).tolist() == [32.0, 7.0, 7.0, 7.0, FP32_LARGEST]


def test_the_scale_of_the_tensor_itself_by_hand() -> None:
    amax = torch.tensor([3.5, 0.0, math.inf, math.nan, 1e-45, 3.0])
    assert current_scale(amax, E4M3).tolist()[:5] == [128.0, 1.0, 1.0, 1.0, FP32_LARGEST]
    assert current_scale(amax, E4M3, power_of_two=True).tolist()[:1] == [128.0]
    assert current_scale(amax, E4M3, power_of_two=True)[5] == 128.0  # 149.33 rounded down
    assert current_scale(amax, E4M3)[5] == torch.tensor(448.0) / torch.tensor(3.0)


def test_scales_are_divisions_rounded_once() -> None:
    amax = torch.rand(4096) * 100
    exact = (448.0 / amax.double()).float()
    assert torch.equal(current_scale(amax, E4M3), exact)
    assert not torch.equal(448.0 * amax.reciprocal(), exact)


def test_the_shared_exponent_is_rounded_up() -> None:
    amax = torch.tensor([448.0, 449.0, 896.0, 0.0, math.inf, math.nan])
    assert shared_exponent(amax, E4M3).tolist() == [127, 128, 128, 0, 0xFE, 0xFF]
    assert power_of(torch.tensor([0, 127, 130], dtype=torch.int32)).tolist() == [2.0**-127, 1.0, 8.0]


@pytest.mark.parametrize("rows", [128, 200])
@pytest.mark.parametrize("tile", [(1, 128), (128, 128)])
def test_a_block_is_what_a_tensor_of_its_own_would_be(rows: int, tile: tuple[int, int]) -> None:
    tensor = matrix(rows, 300)
    whole = per_block(tensor, E4M3, tile).dequantised()
    for top in range(0, rows, tile[0]):
        for left in range(0, 300, tile[1]):
            part = tensor[top : top + tile[0], left : left + tile[1]]
            alone = per_tensor(part, current_scale(part.abs().max(), E4M3, power_of_two=True), E4M3).dequantised()
            assert torch.equal(whole[top : top + tile[0], left : left + tile[1]], alone)
    assert not torch.equal(whole, per_block(tensor, E4M3, tile, power_of_two=False).dequantised())
    assert whole.shape == tensor.shape


def test_an_mx_block_is_exact_for_what_fp8_can_hold_and_one_outlier_costs_its_neighbours_alone() -> None:
    tensor = torch.tensor([[1.0, 1.125, -0.5, 2.0**-6] * 16])
    assert torch.equal(per_32(tensor, E4M3).dequantised(), tensor)
    tensor[0, 0] = 2.0**20
    spoilt = per_32(tensor, E4M3).dequantised()
    assert torch.equal(spoilt[0, 32:], tensor[0, 32:])
    assert (spoilt[0, 1:32] == 0).all()
    assert per_tensor(tensor, current_scale(tensor.abs().max(), E4M3), E4M3).dequantised()[0, 1:].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_block_of_nan_stays_nan_and_one_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, 64)
    tensor[0, 3] = math.nan
    rounded = per_32(tensor, dtype).dequantised()
    assert rounded[0, :32].isnan().all()
    assert torch.equal(rounded[1], tensor[1])


def test_the_share_that_is_out_of_range_by_hand() -> None:
    tensor = torch.tensor([[0.0, 2.0**-9, 2.0**-11, 448.0, 500.0, -1e4]])
    underflow, overflow = out_of_range(tensor, per_tensor(tensor, torch.tensor(1.0), E4M3))
    assert (underflow.item(), overflow.item()) == (1, 2)


def test_the_largest_of_the_window_counts_and_leaves_it() -> None:
    history = new_history(3, 1)
    scales: list[float] = []
    for amax in (4.0, 1.0, 2.0, 1.0, 1.0):
        history.amax[0] = amax
        history = updated(history, E4M3, "max", margin=0)
        scales.append(history.scale.item())
    assert scales == [112.0, 112.0, 112.0, 224.0, 224.0]
    recent = updated(History(torch.tensor([[1.0], [4.0]]), torch.ones(1)), E4M3, "most_recent", margin=1)
    assert recent.scale.item() == 224.0


def test_a_tensor_of_zeros_keeps_its_history_and_its_scale() -> None:
    history = History(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([5.0, 5.0]))
    after = updated(history, E4M3, "max", margin=0)
    assert after.scale.tolist() == [5.0, 224.0]
    assert after.amax.tolist() == [[0.0, 0.0], [3.0, 2.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "delayed", "last_layers_in_bf16": 1}, "delayed scaling has all layers in FP8"),
        ({"recipe": "current", "margin": 1}, "margin is for delayed scaling alone"),
        ({"recipe": "current", "fp8_parameters": True, "backend": "emulate"}, "fp8_parameters needs backend te"),
        ({"recipe": "delayed", "amax_history_length": 0}, "amax_history_length must be positive, got 0"),
        ({"recipe": "mxfp8", "first_layers_in_bf16": -1}, "layers in bf16 must not be negative, got -1 and 0"),
    ],
)
def test_settings_that_do_not_go_together_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fp8Config(**settings)  # type: ignore[arg-type]


def test_the_format_is_that_of_the_recipe_where_none_is_set() -> None:
    formats = {
        recipe: Fp8Config(recipe=recipe).number_format for recipe in ("delayed", "current", "blockwise", "mxfp8")
    }
    assert formats == {"delayed": "hybrid", "current": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}
    assert Fp8Config(recipe="mxfp8", format="hybrid").number_format == "hybrid"
