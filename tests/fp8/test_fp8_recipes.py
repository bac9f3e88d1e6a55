"""The recipe that megatron-core makes of our settings is the one that they mean to Transformer Engine."""

from __future__ import annotations

from typing import Any

import pytest
from megatron.core.fp8_utils import HAVE_TE, get_fp8_recipe
from transformer_engine.common import recipe as te

from nemo_xtoken.config import Fp8Config, ModelConfig, ParallelConfig
from nemo_xtoken.integrations.megatron.models import transformer_config

MODEL = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4)
HYBRID, E4M3 = te.Format.HYBRID, te.Format.E4M3
CASES: dict[str, tuple[Fp8Config, Any]] = {
    "delayed": (
        Fp8Config(recipe="delayed", margin=1, amax_history_length=7, amax_algorithm="most_recent"),
        te.DelayedScaling(margin=1, fp8_format=HYBRID, amax_history_len=7, amax_compute_algo="most_recent"),
    ),
    "delayed, defaults": (Fp8Config(recipe="delayed"), te.DelayedScaling()),
    "current": (Fp8Config(recipe="current"), te.Float8CurrentScaling()),
    "current, e4m3": (Fp8Config(recipe="current", format="e4m3"), te.Float8CurrentScaling(fp8_format=E4M3)),
    "blockwise": (Fp8Config(recipe="blockwise"), te.Float8BlockScaling()),
    "mxfp8": (Fp8Config(recipe="mxfp8"), te.MXFP8BlockScaling()),
}
COMPARED = ("margin", "fp8_format", "amax_history_len", "amax_compute_algo", "reduce_amax", "fp8_quant_fwd_inp")
COMPARED += ("fp8_quant_fwd_weight", "fp8_quant_bwd_grad", "x_block_scaling_dim", "w_block_scaling_dim")


def facts(recipe: Any) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in COMPARED if hasattr(recipe, name)}


@pytest.mark.parametrize("name", CASES)
def test_megatron_makes_the_recipe_that_is_meant(name: str) -> None:
    assert HAVE_TE
    fp8, expected = CASES[name]
    made = get_fp8_recipe(transformer_config(MODEL, ParallelConfig(), "cpu", fp8=fp8))
    assert isinstance(made, type(expected))
    assert facts(made) == facts(expected)
    others = [recipe for other, (_, recipe) in CASES.items() if other != name]
    assert all(facts(made) != facts(recipe) or not isinstance(made, type(recipe)) for recipe in others)
