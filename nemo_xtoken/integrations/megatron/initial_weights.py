"""Initial weights that do not depend on the parallel layout: every weight is drawn whole from its name and the seed."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"


def initialise(model: GPTModel, seed: int, vocab_size: int) -> None:
    """Draw the model's matrices from normal distributions, in place, without communication.

    Standard deviations are Megatron's: `init_method_std`, over sqrt(2 * num_layers) for the two matrices of a layer
    that write to the residual stream. Rows of the vocabulary that are only padding are zero: padding has no say in
    the rest. Norms keep their ones and zeros.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            with torch.no_grad():
                parameter.copy_(_own_part(model, name, parameter, _draw(model, name, parameter, seed, vocab_size)))


def global_name(model: GPTModel, name: str) -> str:
    """A parameter's name with its layer counted from the start of the whole model, not of this pipeline stage."""
    if name == HEAD and model.share_embeddings_and_output_weights:
        return EMBEDDING
    parts = name.split(".")
    if parts[:2] == ["decoder", "layers"]:
        layer: Any = model.decoder.layers[int(parts[2])]
        parts[2] = str(layer.layer_number - 1)
    return ".".join(parts)


def _draw(model: GPTModel, name: str, parameter: Tensor, seed: int, vocab_size: int) -> Tensor:
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] *= model.pg_collection.tp.size()  # type: ignore[attr-defined]
    whole = torch.zeros(shape)
    drawn = whole[:vocab_size] if name in (EMBEDDING, HEAD) else whole
    generator = torch.Generator().manual_seed((zlib.crc32(global_name(model, name).encode()) + seed) % 2**63)
    drawn.normal_(std=_std(model, name), generator=generator)
    return whole


def _std(model: GPTModel, name: str) -> float:
    std = float(model.config.init_method_std)
    writes_to_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    return std / math.sqrt(2 * model.config.num_layers) if writes_to_residual else std


def _own_part(model: GPTModel, name: str, parameter: Tensor, whole: Tensor) -> Tensor:
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    tp_group, dim = model.pg_collection.tp, int(parameter.partition_dim)  # type: ignore[attr-defined]
    # A gated layer's first matrix is gate and up in one, and each rank has its part of both.
    halves = 2 if model.config.gated_linear_unit and "linear_fc1" in name else 1
    parts = [half.chunk(tp_group.size(), dim)[tp_group.rank()] for half in whole.chunk(halves, dim)]
    return torch.cat(parts, dim)
