"""FP8 settings as NeMo's precision plugin."""

from __future__ import annotations

from typing import Any

import nemo_run as run
from nemo.collections.llm.recipes.precision.mixed_precision import (
    bf16_mixed,
    bf16_with_fp8_current_scaling_mixed,
    bf16_with_fp8_mixed,
    bf16_with_fp8_subchannel_scaling_mixed,
    bf16_with_mxfp8_mixed,
)

from nemo_xtoken.config import Fp8Config
from nemo_xtoken.integrations.megatron.fp8_backend import check_engine, precision_fields

PRECISIONS = {
    "bf16": bf16_mixed,
    "fp8": bf16_with_fp8_current_scaling_mixed,
    "fp8_delayed": bf16_with_fp8_mixed,
    "fp8_blockwise": bf16_with_fp8_subchannel_scaling_mixed,
    "mxfp8": bf16_with_mxfp8_mixed,
}
"""NeMo's own, by the names that recipes take. Those with FP8 keep the weights in FP8 too, but for blockwise."""


def precision_plugin(fp8: Fp8Config) -> run.Config[Any]:
    """bf16 with FP8 linear layers, for `recipe.trainer.plugins`. Raises ConfigError for the backend emulate."""
    check_engine("the precision plugin", fp8)
    plugin: Any = bf16_mixed()
    for name, value in precision_fields(fp8).items():
        setattr(plugin, name, value)
    plugin.fp8_param_gather = fp8.fp8_parameters
    plugin.reuse_grad_buf_for_mxfp8_param_ag = fp8.fp8_parameters and fp8.recipe == "mxfp8"
    return plugin
