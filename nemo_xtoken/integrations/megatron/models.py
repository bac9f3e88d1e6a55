"""Builds Megatron-core GPT models from the run's config."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_xtoken.config import ModelConfig, ParallelConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.fp8_config import Fp8Config
from nemo_xtoken.integrations.megatron.context_parallel import ContextParallelAttention
from nemo_xtoken.integrations.megatron.facts import has_apex, has_transformer_engine
from nemo_xtoken.integrations.megatron.fp8_backend import check_available, transformer_fields
from nemo_xtoken.integrations.megatron.fp8_layers import attach, with_fp8
from nemo_xtoken.integrations.megatron.head_tap import tap_head
from nemo_xtoken.integrations.megatron.initial_weights import initialise
from nemo_xtoken.integrations.megatron.layout import virtual_pipeline_size
from nemo_xtoken.integrations.megatron.norm import TorchNorm


def padded_vocab_size(model: ModelConfig, vocab_size: int, tp_size: int) -> int:
    """Rows of the head over all tp ranks: `vocab_size` up to a multiple of make_vocab_size_divisible_by * tp_size."""
    multiple = model.make_vocab_size_divisible_by * tp_size
    return -(-vocab_size // multiple) * multiple


def build_gpt(
    model: ModelConfig,
    parallel: ParallelConfig,
    *,
    vocab_size: int,
    max_sequence_length: int,
    device: str,
    seed: int,
    params_dtype: torch.dtype = torch.float32,
    pg_collection: ProcessGroupCollection | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    fp8: Fp8Config | None = None,
) -> GPTModel:
    """A GPT whose forward returns final hidden states [b, s, h], with weights that depend on the seed alone.

    Args:
        vocab_size: real ids; the head has `padded_vocab_size` rows.
        device: "cpu" or "cuda"; fusions and Transformer Engine are for "cuda".
        pg_collection: the groups to build on; Megatron's global ones when None.
        pre_process, post_process: whether this is the first, the last pipeline stage.
        vp_stage: which of the rank's virtual pipeline stages this is; None without them.
        fp8: how the layers multiply; None: in params_dtype.
    """
    config = transformer_config(model, parallel, device, params_dtype, fp8)
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, device, fp8),
        vocab_size=padded_vocab_size(model, vocab_size, parallel.tensor_model_parallel_size),
        max_sequence_length=max_sequence_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )
    initialise(gpt, seed, vocab_size)
    if fp8 is not None and fp8.backend == "emulate":
        attach(gpt, fp8)
    return tap_head(
        gpt,
        add_bias=model.add_head_bias,
        logit_scale=model.logit_scale,
        soft_cap=model.final_logit_softcapping,
    )


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    device: str,
    params_dtype: torch.dtype = torch.float32,
    fp8: Fp8Config | None = None,
) -> TransformerConfig:
    """Megatron's config of a model; a field that the installed megatron-core does not have is left out."""
    stages = parallel.pipeline_model_parallel_size * parallel.virtual_pipeline_model_parallel_size
    if model.num_layers % stages:
        raise ConfigError(f"num_layers {model.num_layers} is not divisible by the {stages} (virtual) pipeline stages")
    return _keep_known_fields(
        **_architecture(model),
        **_precision(params_dtype),
        **(plain_kernels() if device == "cpu" else _fused_kernels(model)),
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        **_interleaving(parallel),
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        **transformer_fields(fp8),
    )


def _interleaving(parallel: ParallelConfig) -> dict[str, Any]:
    """Virtual pipeline stages. Two ranks then have several messages for one another at a time, which are sent one by
    one: in a batch nothing says which is which."""
    size = virtual_pipeline_size(parallel)
    if size is None:
        return {}
    return {"virtual_pipeline_model_parallel_size": size, "overlap_p2p_comm": True, "batch_p2p_comm": False}


def _keep_known_fields(**values: Any) -> TransformerConfig:
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    return TransformerConfig(**{name: value for name, value in values.items() if name in known})


def _architecture(model: ModelConfig) -> dict[str, Any]:
    gated = model.activation == "swiglu"
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
        "normalization": model.normalization,
        "gated_linear_unit": gated,
        "activation_func": torch.nn.functional.silu if gated else torch.nn.functional.gelu,
        "add_bias_linear": False,
        "init_method_std": model.init_method_std,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _precision(params_dtype: torch.dtype) -> dict[str, Any]:
    return {
        "params_dtype": params_dtype,
        "pipeline_dtype": params_dtype,
        "autocast_dtype": params_dtype,
        "bf16": params_dtype is torch.bfloat16,
    }


def _fused_kernels(model: ModelConfig) -> dict[str, Any]:
    """Megatron's fused element-wise kernels; that of an activation without bias exists for gated layers only."""
    return {"bias_activation_fusion": model.activation == "swiglu", "bias_dropout_fusion": True}


def plain_kernels() -> dict[str, Any]:
    """What needs CUDA kernels or streams, switched off."""
    return {
        "use_cpu_initialization": True,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "async_tensor_model_parallel_allreduce": False,
        "batch_p2p_sync": False,
    }


def block_spec(config: TransformerConfig, device: str, fp8: Fp8Config | None = None) -> Any:
    """Layers for this device: a spec of one layer, or of the whole block where its norms are ours.

    Raises UnavailableError where FP8 needs what is not there.
    """
    on_gpu = device == "cuda"
    emulated = fp8 is not None and fp8.backend == "emulate"
    if fp8 is not None:
        check_available(fp8, device)
    with_te = on_gpu and has_transformer_engine() and not emulated
    spec: Any = (
        get_gpt_layer_with_transformer_engine_spec()
        if with_te
        else get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    )
    if fp8 is not None and emulated:
        spec = with_fp8(spec, fp8)
    attention = spec.submodules.self_attention
    if with_te:
        # Packed documents need the mask of `document_mask`, which Transformer Engine ignores for "causal".
        attention.params["attn_mask_type"] = AttnMaskType.arbitrary
    if config.context_parallel_size > 1:
        attention.submodules.core_attention = ContextParallelAttention
    if with_te or (on_gpu and (has_apex() or not config.sequence_parallel)):
        return spec
    spec.submodules.input_layernorm = TorchNorm
    spec.submodules.pre_mlp_layernorm = TorchNorm
    if config.qk_layernorm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = TorchNorm
    stages = config.pipeline_model_parallel_size * (config.virtual_pipeline_model_parallel_size or 1)
    norm: Any = TorchNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * (config.num_layers // stages), layer_norm=norm)
