"""Lets NeMo's trainer run on CPU and gloo, on top of megatron's device layer. Only where a recipe says `device="cpu"`.

NeMo's strategy and optimizer wrappers name the CUDA device in places of their own:

    Tensor.to         metrics are moved to "cuda" before they are logged
    Module.cuda       the pipeline moves itself
    memory counters   callbacks read them
    set_device        called with the local rank
    checkpoints       loaded tensors are moved to the current CUDA device
    random states     megatron-core's tracker holds CUDA states; the one for inference holds none, which is right where
                      there is no dropout

NeMo is imported before a recipe is looked at, so the layer comes after megatron-core's import here. That is safe for
megatron-core 0.15: what it binds at import are the random states alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from nemo_xtoken.integrations.megatron import cpu_device

PLAIN_KERNELS: dict[str, Any] = {
    "use_cpu_initialization": True,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "persist_layer_norm": False,
    "batch_p2p_sync": False,
}
"""Fields of a GPTConfig that switch off what needs CUDA kernels or streams."""

MARK = "nemo_xtoken_nemo_cpu_device"


def install() -> None:
    """Redirect NeMo's CUDA calls to the CPU for the rest of this process; a second call does nothing."""
    if getattr(torch.cuda, MARK, False):
        return
    cpu_device.install(after_import=True)
    torch.Tensor.to = _to_cpu(torch.Tensor.to)  # type: ignore[method-assign, assignment]
    torch.nn.Module.cuda = lambda module, *_, **__: module  # type: ignore[method-assign, assignment]
    torch.cuda.set_device = lambda *_, **__: None
    for counter in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        setattr(torch.cuda, counter, lambda *_, **__: 0)
    _leave_loaded_tensors()
    _keep_no_random_states()
    setattr(torch.cuda, MARK, True)


def _to_cpu(to: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(to)
    def wrapped(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(_cpu_for(argument) for argument in args)
        return to(tensor, *args, **{name: _cpu_for(value) for name, value in kwargs.items()})

    return wrapped


def _cpu_for(argument: Any) -> Any:
    names_cuda = isinstance(argument, str | torch.device) and str(argument).startswith("cuda")
    return cpu_device.CPU if names_cuda else argument


def _leave_loaded_tensors() -> None:
    from nemo.lightning.io import pl

    pl._fix_tensors_device = lambda checkpoint: checkpoint


def _keep_no_random_states() -> None:
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    initialize_rng_tracker(inference_rng_tracker=True)
