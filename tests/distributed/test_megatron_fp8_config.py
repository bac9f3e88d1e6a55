"""FP8 settings in the words of the installed megatron-core."""

from __future__ import annotations

import pytest

from nemo_xtoken.config import Fp8Config, ModelConfig, ParallelConfig
from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.integrations.megatron.fp8_backend import RECIPES, check_available, check_config_available, missing
from nemo_xtoken.integrations.megatron.models import block_spec, transformer_config

MODEL = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4)
CASES = {
    "delayed": (
        Fp8Config(recipe="delayed", margin=2, amax_history_length=16, amax_algorithm="most_recent"),
        {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_margin": 2, "fp8_amax_history_len": 16}
        | {"fp8_amax_compute_algo": "most_recent", "first_last_layers_bf16": False, "fp8_param": False},
    ),
    "delayed, TE's defaults": (
        Fp8Config(recipe="delayed"),
        {"fp8_margin": 0, "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"},
    ),
    "current": (
        Fp8Config(recipe="current", first_layers_in_bf16=1, last_layers_in_bf16=2, fp8_parameters=True),
        {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True, "fp8_param": True}
        | {"num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 2},
    ),
    "current, last alone": (
        Fp8Config(recipe="current", last_layers_in_bf16=1),
        {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 0, "num_layers_at_end_in_bf16": 1},
    ),
    "blockwise": (Fp8Config(recipe="blockwise"), {"fp8": "e4m3", "fp8_recipe": "blockwise"}),
    "mxfp8": (Fp8Config(recipe="mxfp8", format="hybrid"), {"fp8": "hybrid", "fp8_recipe": "mxfp8"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_setting_arrives_in_megatrons_config(name: str) -> None:
    fp8, expected = CASES[name]
    config = transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8)
    assert {field: getattr(config, field) for field in expected} == expected


def test_without_fp8_and_emulated_megatrons_own_fp8_is_off() -> None:
    for fp8 in (None, Fp8Config(recipe="current", backend="emulate")):
        assert transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8).fp8 is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_backend_te_is_refused_with_what_is_missing(recipe: str) -> None:
    fp8 = Fp8Config(recipe=recipe)  # type: ignore[arg-type]
    lacks = missing(fp8.recipe, "cpu")
    needed = {"delayed": "8.9", "current": "8.9", "blockwise": "9.0", "mxfp8": "10.0"}[recipe]
    assert lacks[-1] == f"a GPU of compute capability {needed} or higher (no GPU is used)"
    with pytest.raises(UnavailableError, match=r"backend=emulate rounds the same way"):
        check_available(fp8, "cpu")
    with pytest.raises(UnavailableError, match="with backend te needs"):
        block_spec(transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8), "cpu", fp8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_config_of_another_framework_is_refused_as_well(recipe: str) -> None:
    fp8 = Fp8Config(recipe=recipe)  # type: ignore[arg-type]
    config = transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8)
    with pytest.raises(UnavailableError, match=rf"recipe {RECIPES[fp8.recipe]}, which needs transformer-engine"):
        check_config_available(config)
    check_config_available(transformer_config(MODEL, ParallelConfig(), "cpu"))
