"""Makes a GPTModel hand out its final hidden states: the loss owns the head and computes logits block by block."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from torch import Tensor

from nemo_xtoken.parallel import HeadOptions


class HeadTap(ColumnParallelLinear):
    """An output layer that holds the head's weight, under the same state-dict keys, and returns its input.

    With sequence parallelism the [s/tp, b, h] inputs are gathered to [s, b, h]. The gradient that comes back must be
    complete on every tp rank, as that of `parallel.distillation_loss` is; each rank keeps its own rows of it.

    logit_scale, soft_cap  what has to happen to the logits, see `parallel.HeadOptions`
    """

    logit_scale: float = 1.0
    soft_cap: float | None = None

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """[s, b, h] of the last layer, after the final norm, unchanged."""
        if self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(
                input_, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return input_, None


def tap_head(
    model: GPTModel, *, add_bias: bool = False, logit_scale: float = 1.0, soft_cap: float | None = None
) -> GPTModel:
    """Replace the output layer: from now on `model(tokens, position_ids, attention_mask)` is [b, s, h], not logits.

    A bias that the layer has is kept; with `add_bias` it gets one of zeros, [V/tp], under Megatron's key.
    """
    if not model.post_process:
        return model
    layer: Any = model.output_layer
    tap = HeadTap(
        layer.input_size,
        layer.output_size,
        config=layer.config,
        init_method=lambda weight: weight,
        bias=add_bias,
        skip_weight_param_allocation=True,
        tp_group=layer.tp_group,
    )
    tap.weight = layer.weight
    if layer.bias is not None:
        tap.bias = layer.bias
    tap.logit_scale, tap.soft_cap = logit_scale, soft_cap
    model.output_layer = tap
    return model


def head_weight(model: GPTModel) -> Tensor:
    """The head's rows of this rank, [V/tp, h]: the embedding's where the two are shared."""
    if model.share_embeddings_and_output_weights:
        return model.shared_embedding_or_output_weight()
    weight = model.output_layer.weight
    assert weight is not None
    return weight


def head_options(model: GPTModel) -> HeadOptions:
    """What the tapped head does besides its weight, for this rank's rows."""
    tap: Any = model.output_layer
    return HeadOptions(tap.bias, tap.logit_scale, tap.soft_cap)


def rows(hidden: Tensor) -> Tensor:
    """[b, s, h] as [b*s, h], batch first: row = sequence * length + position."""
    return hidden.reshape(-1, hidden.shape[-1])
