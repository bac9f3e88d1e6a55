"""Lets megatron-core run on CPU and gloo. Installed only when a run says `device: cpu`, before megatron is imported.

megatron-core names the CUDA device in many places. This layer answers for it:

    current_device   buffers, rotary embeddings, tensor parallel mappings and DDP ask for it; the answer is the CPU
    factories        literals such as `torch.zeros([], device="cuda")` in schedules, gradient clipping, causal mask
    pin_memory       an argument of the same factories that only CUDA understands
    Tensor.cuda      tied embeddings over pipeline stages, exchange of checkpoint shards
    Tensor.type      optimizers accept parameters of type torch.cuda.FloatTensor only, by name
    streams          newer DDP asks for the current stream
    synchronize      pipeline communication, timers, checkpoints
    empty_cache      called after checkpoints
    triton           megatron-core 0.19 imports one of its kernels whether triton is there or not

What needs a GPU for real (Transformer Engine, apex, FP8, NCCL, CUDA graphs) stays unavailable.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.errors import UnavailableError
from nemo_xtoken.integrations.megatron.quiet import keep_quiet

CPU = torch.device("cpu")
FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "eye",
    "full",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
)
FACTORIES += ("zeros", "zeros_like")
MARK = "nemo_xtoken_cpu_device"
PAGED_STASH = "megatron.core.transformer.moe.ops.paged_stash"


class NoStream:
    """A stream on a device that has none: everything has already happened."""

    def wait_stream(self, *_: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, *_: object) -> None:
        """Nothing to wait for."""

    def record_event(self, *_: object) -> NoStream:
        """An event that has happened."""
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""


def choose_device(device: str) -> None:
    """Get this process ready to import megatron-core for "cpu" or "cuda"."""
    keep_quiet()
    if device == "cpu":
        install()


def installed() -> bool:
    """Whether this process answers for CUDA with the CPU."""
    return getattr(torch.cuda, MARK, False)


def install(after_import: bool = False) -> None:
    """Redirect megatron-core's CUDA calls to the CPU for the rest of this process; a second call does nothing.

    Raises UnavailableError when megatron-core was imported before: it would hold references to the CUDA functions.
    `after_import` is for a caller who answers for those as well.
    """
    if installed():
        return
    if "megatron.core" in sys.modules and not after_import:
        raise UnavailableError("device: cpu must be chosen before megatron.core is imported; start a new process")
    _answer_device_questions()
    _drop_streams()
    # torch lists the factories that `with torch.device(...)` redirects when it is first needed; they must be its own.
    with torch.device("meta"):
        torch.empty(0)
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = _stay  # type: ignore[method-assign, assignment]
    torch.Tensor.type = _cuda_type_name(torch.Tensor.type)  # type: ignore[method-assign, assignment]
    _stand_in_for_triton()
    setattr(torch.cuda, MARK, True)


def _answer_device_questions() -> None:
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *_, **__: None  # type: ignore[assignment]
    torch.cuda.empty_cache = lambda: None


def _drop_streams() -> None:
    torch.cuda.Stream = lambda *_, **__: NoStream()  # type: ignore[assignment, misc]
    torch.cuda.current_stream = lambda *_, **__: NoStream()  # type: ignore[assignment]
    torch.cuda.default_stream = lambda *_, **__: NoStream()  # type: ignore[assignment]
    torch.cuda.stream = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment]


def _names_cuda(device: object) -> bool:
    return str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapped


def _stay(tensor: Tensor, *_: object, **__: object) -> Tensor:
    return tensor


def _cuda_type_name(tensor_type: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tensor_type)
    def wrapped(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = tensor_type(tensor, *args, **kwargs)
        asked_for_name = not args and not kwargs
        return answer.replace("torch.", "torch.cuda.", 1) if asked_for_name and not tensor.is_cuda else answer

    return wrapped


def _stand_in_for_triton() -> None:
    if importlib.util.find_spec("triton") is not None:
        return
    module: Any = types.ModuleType(PAGED_STASH)
    module.GLOBAL_BLOCK_SIZE = 1024
    module.paged_stash_copy_kernel = module.paged_stash_pop_kernel = None
    sys.modules[PAGED_STASH] = module
