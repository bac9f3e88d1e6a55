"""Lets NeMo's trainer run on CPU and gloo, on top of megatron's device layer. Only where a recipe says `device="cpu"`.

NeMo's strategy and optimizer wrappers name the CUDA device in places of their own:

    Tensor.to         metrics are moved to "cuda" before they are logged
    Module.cuda       the pipeline moves itself
    memory counters   callbacks read them
    set_device        called with the local rank
    checkpoints       loaded tensors are moved to the current CUDA device
    random states     megatron-core's tracker holds CUDA states; the one for inference holds none, which is right where
                      there is no dropout; recomputation saves and restores CUDA's own state, and gets the CPU's
    results queue     writers of a checkpoint report through a manager process, which starts by importing everything

NeMo is imported before a recipe is looked at, so the layer comes after megatron-core's import here. That is safe for
megatron-core 0.15: what it binds at import are the random states alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nemo_xtoken.errors import UnavailableError
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
    _collect_writers_results_here()
    setattr(torch.cuda, MARK, True)


@contextmanager
def fused_rope_allowed() -> Iterator[None]:
    """Lets NeMo's configs be made, which ask for fused rotary embeddings, where there are none.

    megatron-core refuses such a config without Transformer Engine; `plain` then switches them off.
    """
    from megatron.core.models.common.embeddings import rope_utils

    missing = rope_utils.fused_apply_rotary_pos_emb is None
    if missing:
        rope_utils.fused_apply_rotary_pos_emb = _no_fused_rope
    try:
        yield
    finally:
        if missing:
            rope_utils.fused_apply_rotary_pos_emb = None


def _no_fused_rope(*_: Any, **__: Any) -> Any:
    raise UnavailableError("fused rotary embeddings need Transformer Engine; set apply_rope_fusion=False")


def plain(config: Any) -> Any:
    """Switch off, in a GPTConfig, what needs CUDA kernels or streams."""
    from nemo_xtoken.integrations.nemo.config import set_with_io

    for name, value in PLAIN_KERNELS.items():
        set_with_io(config, name, value)
    return config


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
    from megatron.core.tensor_parallel import random
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    initialize_rng_tracker(inference_rng_tracker=True)
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda *_, **__: None


def _collect_writers_results_here() -> None:
    from nemo_xtoken.integrations.megatron.checkpoint_writing import collect_writers_results_here

    collect_writers_results_here()
