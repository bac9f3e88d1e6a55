"""megatron-core's parallel linear layers with products in emulated FP8, and what they need beside a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from nemo_xtoken.data.padding import token_multiple
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.fp8.delayed import History, new_history
from nemo_xtoken.fp8.product import fp8_linear
from nemo_xtoken.fp8.rounding import BACKWARD, FORWARD, SLOTS, Delayed, InBlocks, PerTensor, Rounding
from nemo_xtoken.fp8.statistics import Statistics
from nemo_xtoken.fp8_config import Fp8Config


class Fp8Column(ColumnParallelLinear):
    """y = x·W' in FP8; W [out/tp, in], x [s, b, in] whole, or [s/tp, b, in] with sequence parallelism."""

    def __init__(self, *args: Any, fp8: Fp8Config, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp8 = Fp8State(self, fp8)

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        allreduce_dgrad: bool = False,
        sequence_parallel: bool = False,
        **_: Any,
    ) -> Tensor:
        self.fp8.check_tokens(input)
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=self.tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
        return self.fp8.linear(input, weight, bias)


class Fp8Row(RowParallelLinear):
    """y = x·W' in FP8, summed over tp; W [out, in/tp], x [s, b, in/tp]."""

    def __init__(self, *args: Any, fp8: Fp8Config, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp8 = Fp8State(self, fp8)

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        self.fp8.check_tokens(input)
        return self.fp8.linear(input, weight, bias)


class Fp8State:
    """How a layer rounds, and what it has seen.

    The scales of `delayed` are buffers of the layer, the same on all ranks of tp, dp and cp, so they are in its
    checkpoints. Those of `current` are over the tp group, so that the layout does not change what is rounded: TE takes
    each rank's own part of a tensor, which is no coarser.
    """

    def __init__(self, layer: Any, config: Fp8Config) -> None:
        self.layer, self.enabled = layer, True
        self.statistics, self.token_multiple = Statistics(), token_multiple(config)
        self.rounding: Rounding = self._rounding(layer, config)

    def check_tokens(self, x: Tensor) -> None:
        """Raises ConfigError for x [..., in] of a number of tokens that TE's kernels would refuse."""
        tokens = x.numel() // x.shape[-1]
        if self.enabled and tokens % self.token_multiple:
            raise ConfigError(
                f"FP8 multiplies a multiple of {self.token_multiple} tokens of a rank, got {tokens}; "
                "change the sequence length"
            )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x·W' + bias, in FP8 unless the layer is left out."""
        if not self.enabled:
            return torch.nn.functional.linear(x, weight, bias)
        if isinstance(self.rounding, Delayed):
            self.rounding.recording = self.layer.training and torch.is_grad_enabled()
        product = fp8_linear(x, weight, self.rounding)
        return product if bias is None else product + bias

    def _rounding(self, layer: Any, config: Fp8Config) -> Rounding:
        if config.recipe == "delayed":
            history = new_history(config.amax_history_length, len(SLOTS))
            layer.register_buffer("fp8_amax_history", history.amax)
            layer.register_buffer("fp8_scale", history.scale)
            return Delayed(config, self.statistics, lambda: History(layer.fp8_amax_history, layer.fp8_scale))
        if config.recipe == "current":
            return PerTensor(config, self.statistics, lambda amax: reduce_max(amax, layer.tp_group))
        return InBlocks(config, self.statistics)


def reduce_max(amax: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The largest of each entry over a group; one all-reduce."""
    if group.size() > 1:
        dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=group)
    return amax


def with_fp8(spec: Any, fp8: Fp8Config) -> Any:
    """The spec of one local layer, its four linear layers in emulated FP8."""
    attention, mlp = spec.submodules.self_attention.submodules, spec.submodules.mlp
    feed_forward = mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]
    attention.linear_qkv = feed_forward.linear_fc1 = ModuleSpec(module=Fp8Column, params={"fp8": fp8})
    attention.linear_proj = feed_forward.linear_fc2 = ModuleSpec(module=Fp8Row, params={"fp8": fp8})
    return spec


def layers_of(model: GPTModel) -> dict[str, Fp8Column | Fp8Row]:
    """The layers that multiply in emulated FP8 by name, `layers.0.mlp.linear_fc1`, counted over all stages."""
    found: dict[str, Fp8Column | Fp8Row] = {}
    for layer in model.decoder.layers:
        modules = [(name, part) for name, part in layer.named_modules() if isinstance(part, Fp8Column | Fp8Row)]
        number: Any = layer.layer_number
        found |= {f"layers.{number - 1}.{name}": part for name, part in modules if part.fp8.enabled}
    return found


def attach(model: GPTModel, fp8: Fp8Config) -> None:
    """Leave out the first and last layers, and let delayed scaling's histories move on after each pass of the layers.

    As in TE the forward tensors' largest values are reduced where the forward pass of a micro batch ends, those of the
    gradients where its backward pass ends: one all-reduce each over tp, dp and cp.
    """
    last = model.config.num_layers - fp8.last_layers_in_bf16
    for layer in model.decoder.layers:
        number: Any = layer.layer_number
        for part in layer.modules():
            if isinstance(part, Fp8Column | Fp8Row):
                part.fp8.enabled = fp8.first_layers_in_bf16 < number <= last
    if fp8.recipe == "delayed":
        model.decoder.register_forward_pre_hook(_watch_input, with_kwargs=True)
        model.decoder.register_forward_hook(_after_forward)


def histories_of(model: torch.nn.Module) -> list[Delayed]:
    """Delayed scaling's of all layers below a module, in order."""
    states = [part.fp8 for part in model.modules() if isinstance(part, Fp8Column | Fp8Row)]
    return [state.rounding for state in states if isinstance(state.rounding, Delayed)]


def needs_calibration(model: GPTModel) -> bool:
    """Whether a model with delayed scaling has not seen a gradient yet."""
    histories = histories_of(model)
    return bool(histories) and not any(bool(history.history().amax.any()) for history in histories)


@contextmanager
def calibrating(models: list[GPTModel]) -> Iterator[None]:
    """Inside, largest values are noted and nothing is rounded."""
    histories = [history for model in models for history in histories_of(model)]
    for history in histories:
        history.calibrating = True
    try:
        yield
    finally:
        for history in histories:
            history.calibrating = False


def _watch_input(decoder: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    hidden = decoder.input_tensor if getattr(decoder, "input_tensor", None) is not None else None
    hidden = hidden if hidden is not None else keywords.get("hidden_states", arguments[0] if arguments else None)
    if isinstance(hidden, Tensor) and hidden.requires_grad and decoder.training:
        # The gradient of the layers' input is the last that their backward pass computes.
        hidden.register_hook(lambda _: _update(decoder, BACKWARD))


def _after_forward(decoder: torch.nn.Module, *_: Any) -> None:
    if decoder.training and torch.is_grad_enabled():
        _update(decoder, FORWARD)


def _update(decoder: torch.nn.Module, passed: slice) -> None:
    histories = histories_of(decoder)
    group: Any = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    newest = reduce_max(torch.stack([history.history().amax[0, passed] for history in histories]), group)
    for history, amax in zip(histories, newest, strict=True):
        history.update(passed, lambda _, amax=amax: amax)
