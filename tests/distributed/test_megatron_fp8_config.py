"""FP8 settings in the words of the installed megatron-core, and of every one from 0.15 to 0.19."""

from __future__ import annotations

import ast
import dataclasses
import json
from importlib.metadata import version
from typing import Any

import pytest
from megatron.core.enums import Fp8Recipe
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_xtoken.config import Fp8Config, ModelConfig, ParallelConfig
from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.integrations.megatron.fp8_backend import (
    RECIPES,
    check_available,
    check_config_available,
    missing,
    transformer_fields,
)
from nemo_xtoken.integrations.megatron.models import block_spec, transformer_config
from tests.distributed.megatron_core_fields import TABLE, is_of_fp8

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


VERSIONS: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))["versions"]


@pytest.mark.parametrize("number", VERSIONS)
def test_every_megatron_core_has_these_fields_and_values(number: str) -> None:
    release = VERSIONS[number]
    for fp8, _ in CASES.values():
        for field, value in transformer_fields(fp8).items():
            assert may_hold(release["fields"].get(field), value), (field, value)
    assert set(RECIPES.values()) <= set(release["recipes"])
    assert may_hold(release["fields"].get("fp8_output_proj"), False) == (number >= "0.18")
    assert not may_hold(release["fields"]["fp8_margin"], "most_recent")


def may_hold(annotation: str | None, value: object) -> bool:
    """Whether a field of this annotation is there and takes the value: `Optional[Literal['e4m3', 'hybrid']]`."""
    kind = (annotation or "None").removeprefix("Optional[").rstrip("]")
    if kind.startswith("Literal["):
        return value in ast.literal_eval(f"({kind.removeprefix('Literal[')},)")
    return type(value).__name__ == kind


def test_the_table_is_of_the_releases_that_are_supported() -> None:
    assert [number.rpartition(".")[0] for number in VERSIONS] == ["0.15", "0.16", "0.17", "0.18", "0.19"]
    installed = version("megatron-core")
    (release,) = [table for number, table in VERSIONS.items() if installed.startswith(number.rpartition(".")[0])]
    names = [field.name for field in dataclasses.fields(TransformerConfig) if is_of_fp8(field.name)]
    assert sorted(names) == sorted(release["fields"])
    assert [member.value for member in Fp8Recipe] == release["recipes"]


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
