"""Providers of Bridge's for distillation: from Hugging Face, and with what packed documents need."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.models.gemma.gemma3_provider import Gemma3ModelProvider
from megatron.core.transformer.enums import AttnMaskType

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge import phi3  # noqa: F401  # registers a conversion
from nemo_xtoken.integrations.bridge.gemma3 import as_gemma3
from nemo_xtoken.integrations.megatron.context_parallel import ContextParallelAttention
from nemo_xtoken.integrations.megatron.fp8_backend import check_config_available
from nemo_xtoken.integrations.megatron.models import block_spec, plain_kernels

SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")


def provider_from(model: str | None, *, load_weights: bool = True) -> Any:
    """The provider of a Hugging Face model, a directory or a name. Raises ConfigError where Bridge can't read it."""
    _check_is_there(model)
    try:
        bridge = AutoBridge.from_hf_pretrained(model)
        provider: Any = bridge.to_megatron_provider(load_weights=load_weights)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Megatron-Bridge can't import {model}{_nowhere(model)}: {first_line(error)}") from error
    if load_weights:
        provider.register_pre_wrap_hook(partial(check_conversion, bridge), prepend=True)
    return provider


def with_weights(provider: Any, model: str) -> Any:
    """A provider that reads the weights of a Hugging Face model when it builds its own, and not before."""
    provider.hf_model_id = model
    provider.register_pre_wrap_hook(partial(load_weights, model))
    return provider


def load_weights(model: str, models: list[Any]) -> list[Any]:
    """Read a Hugging Face model's weights into these, in place.

    Raises ConfigError where Bridge can't read it, or where it is of another shape.
    """
    _check_is_there(model)
    try:
        bridge = AutoBridge.from_hf_pretrained(model)
        check_shape(model, bridge.to_megatron_provider(load_weights=False), models[0].config)
        check_conversion(bridge, models)
        bridge.load_hf_weights(models)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Megatron-Bridge can't import {model}{_nowhere(model)}: {first_line(error)}") from error
    return models


def _check_is_there(model: str | None) -> None:
    """Raises ConfigError for a path without a model. No name at Hugging Face is one, so the hub is not asked for it."""
    if model is None:
        return
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_path and not (Path(model) / "config.json").is_file():
        raise ConfigError(f"no model at {model}: expected a directory with a config.json, or a Hugging Face name")


def _nowhere(model: str | None) -> str:
    return "" if model is None or Path(model).is_dir() else ", which is no directory here"


def check_shape(model: str, found: Any, expected: Any) -> None:
    """Raises ConfigError where the provider of a Hugging Face model has other sizes than a config."""
    for size in SIZES:
        if getattr(found, size) != getattr(expected, size):
            raise ConfigError(
                f"{model} is another model than expected: its {size} is {getattr(found, size)}, and that of the config "
                f"is {getattr(expected, size)}"
            )


def check_conversion(bridge: Any, models: list[Any]) -> list[Any]:
    """These models, as they are. Raises ConfigError for a weight that Bridge's conversion has no name for.

    A head that is tied to the embedding needs none.
    """
    registry = bridge._model_bridge.mapping_registry()
    for model in models:
        tied = {"output_layer.weight"} if model.share_embeddings_and_output_weights else set[str]()
        for name in {name for name, _ in model.named_parameters()} - tied:
            if registry.megatron_to_hf_lookup(name) is None:
                raise ConfigError(
                    f"Megatron-Bridge's conversion of {type(bridge._model_bridge).__name__} does not know the weight "
                    f"{name}; this model can't be imported with these layers"
                )
    return models


def adapt(provider: Any, device: torch.device) -> None:
    """Set what the device and packed documents need, in place.

    On the CPU everything that is a CUDA kernel is switched off and the layers are megatron-core's local ones. On CUDA
    the provider's own layers stay; their attention takes the mask of `document_mask`, and, with context parallelism,
    gathers keys and values.
    """
    if device.type == "cpu":
        for name, value in plain_kernels().items():
            if hasattr(provider, name):
                setattr(provider, name, value)
        provider.persist_layer_norm = provider.cross_entropy_loss_fusion = False
        provider.transformer_layer_spec = local_layers
        if sees_whole_sequences(provider):
            provider.window_size = None
    else:
        own = provider.transformer_layer_spec
        if getattr(own, "func", None) is not layers_for_packed_documents:
            provider.transformer_layer_spec = partial(layers_for_packed_documents, own)


def local_layers(config: Any) -> Any:
    """The layers of a provider on the CPU. Raises ConfigError for a window that they do not have."""
    check_config_available(config)
    block = block_spec(config, "cpu")
    if isinstance(config, Gemma3ModelProvider):
        return as_gemma3(block)
    if getattr(config, "window_size", None) is not None:
        raise ConfigError(
            f"attention in a window of {config.window_size} tokens does not work on the CPU: megatron-core's local "
            "layers put it in the place of the mask of packed documents; use shorter sequences or another model"
        )
    return block


def sees_whole_sequences(provider: Any) -> bool:
    """Whether its window is no shorter than its sequences."""
    window = getattr(provider, "window_size", None)
    return isinstance(window, list | tuple) and provider.seq_length <= window[0]


def layers_for_packed_documents(own: Any, config: Any, vp_stage: int | None = None) -> Any:
    """A provider's own layer spec, with attention that takes a mask; a copy."""
    check_config_available(config)
    if callable(own):
        takes_stage = "vp_stage" in inspect.signature(own).parameters
        own = own(config, vp_stage=vp_stage) if takes_stage else own(config)
    spec = copy.deepcopy(own)
    for layer in getattr(spec, "layer_specs", None) or [spec]:
        attention = layer.submodules.self_attention
        attention.params["attn_mask_type"] = AttnMaskType.arbitrary
        if config.context_parallel_size > 1:
            attention.submodules.core_attention = ContextParallelAttention
    return spec


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
