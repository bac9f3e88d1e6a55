"""FP8 settings as Megatron-Bridge's mixed precision, and back from it to what decides the shapes."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, bf16_mixed, get_mixed_precision_config

from nemo_xtoken.config import Fp8Config
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.megatron.fp8_backend import check_engine, precision_fields

PRECISIONS = {
    "delayed": "bf16_with_fp8_delayed_scaling_mixed",
    "current": "bf16_with_fp8_current_scaling_mixed",
    "blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
}
"""Bridge's names of mixed precisions with each recipe. They keep the weights in FP8, but for blockwise."""


def mixed_precision(fp8: Fp8Config) -> MixedPrecisionConfig:
    """bf16 with FP8 linear layers, for `config.mixed_precision`. Raises ConfigError for the backend emulate."""
    check_engine("mixed_precision", fp8)
    mixed = bf16_mixed()
    for name, value in precision_fields(fp8).items():
        setattr(mixed, name, value)
    mixed.fp8_param_gather = fp8.fp8_parameters
    mixed.reuse_grad_buf_for_mxfp8_param_ag = fp8.fp8_parameters and fp8.recipe == "mxfp8"
    return mixed


def precision_of(config: DistillationContainer) -> Any:
    """What has the student's `fp8` and `fp8_recipe` when it is built: its mixed precision, and without one the model.

    Raises ConfigError for a name that Bridge has no mixed precision of.
    """
    mixed: Any = config.mixed_precision
    if mixed is None:
        return config.model
    try:
        return get_mixed_precision_config(mixed)
    except ValueError as error:
        raise ConfigError(f"mixed_precision: {error}") from error
