"""FP8 settings in megatron-core's words, and what Transformer Engine's kernels need to be there."""

from __future__ import annotations

from typing import Any

import torch

from nemo_xtoken.data.padding import multiple_of_recipe
from nemo_xtoken.errors import UnavailableError, require
from nemo_xtoken.fp8_config import Fp8Config, Fp8Recipe
from nemo_xtoken.integrations.megatron.facts import has_transformer_engine

RECIPES: dict[Fp8Recipe, str] = {
    "delayed": "delayed",
    "current": "tensorwise",
    "blockwise": "blockwise",
    "mxfp8": "mxfp8",
}
"""megatron-core's names of the recipes."""

CAPABILITIES: dict[Fp8Recipe, tuple[int, int]] = {
    "delayed": (8, 9),
    "current": (8, 9),
    "blockwise": (9, 0),
    "mxfp8": (10, 0),
}
"""The least compute capability of a GPU for each recipe."""


def transformer_fields(fp8: Fp8Config | None) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig, for which Transformer Engine's layers look; the emulation has none.

    The names are the same in 0.15 to 0.19. megatron-core's own defaults are not TE's: its history has one pass.
    """
    if fp8 is None or fp8.backend == "emulate":
        return {}
    return {"fp8_param": fp8.fp8_parameters, **precision_fields(fp8)}


def precision_fields(fp8: Fp8Config) -> dict[str, Any]:
    """The fields that TransformerConfig, NeMo's MegatronMixedPrecision and Bridge's MixedPrecisionConfig have alike."""
    plain = fp8.first_layers_in_bf16, fp8.last_layers_in_bf16
    return {
        "fp8": fp8.number_format,
        "fp8_recipe": RECIPES[fp8.recipe],
        "fp8_margin": fp8.margin,
        "fp8_amax_history_len": fp8.amax_history_length,
        "fp8_amax_compute_algo": fp8.amax_algorithm,
        "first_last_layers_bf16": max(plain) > 0,
        "num_layers_at_start_in_bf16": plain[0],
        "num_layers_at_end_in_bf16": plain[1],
    }


def check_engine(owner: str, fp8: Fp8Config | None) -> None:
    """Raises ConfigError for a backend that NeMo's and Megatron-Bridge's models do not have."""
    require(
        fp8 is None or fp8.backend == "te",
        f"{owner}: fp8.backend emulate is for `nemo-xtoken train`, whose layers can do it; inside NeMo and "
        "Megatron-Bridge it is Transformer Engine alone: set it to te",
    )


def check_available(fp8: Fp8Config, device: str) -> None:
    """Raises UnavailableError where the backend `te` lacks something: megatron-core alone would train without FP8."""
    if fp8.backend == "emulate":
        return
    lacks = missing(fp8.recipe, device)
    if lacks:
        raise UnavailableError(
            f"fp8.recipe {fp8.recipe} with backend te needs {' and '.join(lacks)}; "
            "fp8.backend=emulate rounds the same way on any device, slowly"
        )


def check_config_available(config: Any) -> None:
    """The same for the config of a model that NeMo or Megatron-Bridge builds, as their precision settings left it."""
    if not config.fp8:
        return
    recipe: Fp8Recipe = "delayed"
    for ours, theirs in RECIPES.items():
        recipe = ours if theirs == config.fp8_recipe else recipe
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lacks = missing(recipe, device)
    if lacks:
        raise UnavailableError(
            f"the model's config asks for FP8, recipe {config.fp8_recipe}, which needs {' and '.join(lacks)}: "
            "megatron-core would train without FP8 and say nothing; set fp8 to null, or a precision without FP8"
        )


def token_multiple_of(config: Any) -> int:
    """What a rank's tokens must be a multiple of for the config of a model, or for what set its `fp8`."""
    return multiple_of_recipe(config.fp8_recipe) if config.fp8 else 1


def missing(recipe: Fp8Recipe, device: str) -> list[str]:
    """What Transformer Engine's kernels for a recipe lack on this rank's device."""
    lacks = [] if has_transformer_engine() else ["transformer-engine (extra 'fp8')"]
    needed = CAPABILITIES[recipe]
    found = torch.cuda.get_device_capability() if device == "cuda" and torch.cuda.is_available() else None
    if found is None or found < needed:
        got = "no GPU is used" if found is None else f"this one has {found[0]}.{found[1]}"
        lacks.append(f"a GPU of compute capability {needed[0]}.{needed[1]} or higher ({got})")
    return lacks
