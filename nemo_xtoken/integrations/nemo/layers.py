"""Layer specs of NeMo configs, adapted to packed documents and to where the model runs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.context_parallel import ContextParallelAttention
from nemo_xtoken.integrations.megatron.facts import has_transformer_engine
from nemo_xtoken.integrations.megatron.fp8_backend import check_config_available
from nemo_xtoken.integrations.megatron.norm import TorchNorm


class DocumentLayers:
    """A config's `transformer_layer_spec` that wraps another one: attention follows the mask of packed documents.

    Transformer Engine ignores masks for its causal attention; with context parallelism keys of all ranks are gathered
    (see `ContextParallelAttention`); the torch norm that stands in for fused ones works under sequence parallelism.
    """

    def __init__(self, wrapped: ModuleSpec | Callable[..., Any]) -> None:
        self.wrapped = wrapped

    def __call__(self, config: TransformerConfig, vp_stage: int | None = None) -> Any:
        """The spec of this pipeline stage. Raises UnavailableError where FP8 needs what is not there."""
        check_config_available(config)
        spec = copy.deepcopy(self._original(config, vp_stage))
        if isinstance(spec, TransformerBlockSubmodules):
            for layer in spec.layer_specs or []:
                _adapt_layer(layer, config)
            spec.layer_norm = _norm(spec.layer_norm)
            return spec
        _adapt_layer(spec, config)
        if not _uses(spec, TorchNorm):
            return spec
        norm: Any = TorchNorm
        layers = [spec] * get_num_layers_to_build(config, vp_stage)
        return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)

    def _original(self, config: TransformerConfig, vp_stage: int | None) -> Any:
        if not callable(self.wrapped):
            return self.wrapped
        takes_stage = "vp_stage" in inspect.signature(self.wrapped).parameters
        return self.wrapped(config, vp_stage=vp_stage) if takes_stage else self.wrapped(config)


def adapt_layers(config: Any) -> None:
    """Let a NeMo config build layers for packed documents; a second call changes nothing.

    Raises ConfigError for sliding windows shorter than its sequences; longer ones leave nothing out, and are dropped.
    """
    _drop_window(config)
    if not isinstance(config.transformer_layer_spec, DocumentLayers):
        config.transformer_layer_spec = DocumentLayers(config.transformer_layer_spec)


def _drop_window(config: Any) -> None:
    """megatron-core's attention would take the window's mask in the place of the documents'."""
    if config.window_size is None:
        return
    before = config.window_size[0]
    if config.seq_length is not None and 0 <= before < config.seq_length:
        raise ConfigError(
            f"attention looks back {before} tokens, sequences have {config.seq_length}: sliding windows do not go with "
            "packed documents; take sequences that are no longer than the window"
        )
    config.window_size = None


def _adapt_layer(layer: ModuleSpec, config: TransformerConfig) -> None:
    attention = getattr(layer.submodules, "self_attention", None)
    if attention is None or not hasattr(attention.submodules, "core_attention"):
        raise ConfigError(
            "the config's transformer_layer_spec has no attention of its own to give the documents' mask to (a whole "
            "layer of Transformer Engine?); set use_transformer_engine_full_layer_spec=False"
        )
    if has_transformer_engine():
        attention.params["attn_mask_type"] = AttnMaskType.arbitrary
    if config.context_parallel_size > 1:
        attention.submodules.core_attention = ContextParallelAttention
    parts: list[Any] = [layer.submodules, attention.submodules]
    for submodules in parts:
        for field in dataclasses.fields(submodules):
            setattr(submodules, field.name, _norm(getattr(submodules, field.name)))


def _norm(module: Any) -> Any:
    return TorchNorm if module is WrappedTorchNorm else module


def _uses(layer: ModuleSpec, module: Any) -> bool:
    submodules: Any = layer.submodules
    return any(getattr(submodules, field.name) is module for field in dataclasses.fields(submodules))
