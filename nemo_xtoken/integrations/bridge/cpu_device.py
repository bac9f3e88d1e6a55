"""Lets Megatron-Bridge run on CPU and gloo, on top of megatron-core's device layer. Installed only for `device: cpu`.

What Bridge needs beyond `integrations.megatron.cpu_device`:

    Transformer Engine   two of its modules import it whether it is there or not; while they are imported an empty
                         package of that name answers. megatron-core is imported before, so that nothing believes in it
    nvidia_resiliency_ext  Bridge needs it, and megatron-core 0.19 takes none below 0.6.0: megatron-core does not see it
    initialize_megatron  asks for a CUDA device unless told otherwise, and seeds Megatron's generators only on one
    compile_helpers      compiles the index builder of Megatron's datasets, which the wheel has ready
    set_jit_fusion_...   warms up kernels that do not run here
    generator states     checkpoints hold those of the CUDA generator and of Megatron's tracker, and must hold some; the
                         CPU's generator takes the place of CUDA's
    scatter              an imported matrix is cut by columns into views, and gloo sends a view's memory from its start
                         on as if it were whole, without a word: the wrong numbers arrive
    results queue        a checkpoint's writer is asked through a manager process, see `checkpoint`
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nemo_xtoken.integrations.megatron import cpu_device

ENGINE = "transformer_engine"
RESILIENCY = "nvidia_resiliency_ext"
MARK = "nemo_xtoken_bridge_on_cpu"


def install() -> None:
    """Redirect Bridge to the CPU for the rest of this process; a second call does nothing.

    Raises UnavailableError when megatron-core was imported before.
    """
    if installed():
        return
    importlib.import_module("transformers.generation.utils")  # names CUDA's classes in annotations
    cpu_device.choose_device("cpu")
    with _absent(RESILIENCY):
        import megatron.core.dist_checkpointing
    # These see that there is no Transformer Engine; what is imported after them asks them.
    import megatron.core.extensions.transformer_engine
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer

    with _empty_transformer_engine():
        import megatron.bridge
        import megatron.bridge.peft.lora  # noqa: F401
    _redirect_generators()
    _redirect_setup()
    torch.distributed.scatter = _of_whole_tensors(torch.distributed.scatter)
    setattr(torch.cuda, MARK, True)


def installed() -> bool:
    """Whether Bridge runs on the CPU in this process."""
    return getattr(torch.cuda, MARK, False)


@contextmanager
def _absent(package: str) -> Iterator[None]:
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


class _AnyModule(types.ModuleType):
    """A module in which every name is a torch module class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


@contextmanager
def _empty_transformer_engine() -> Iterator[None]:
    package, pytorch = types.ModuleType(ENGINE), _AnyModule(f"{ENGINE}.pytorch")
    package.__path__ = []
    package.__version__ = "0"  # type: ignore[attr-defined]
    pytorch.ops = _AnyModule(f"{ENGINE}.pytorch.ops")  # type: ignore[attr-defined]
    package.pytorch = pytorch  # type: ignore[attr-defined]
    modules = {ENGINE: package, pytorch.__name__: pytorch}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def _redirect_generators() -> None:
    from megatron.core.tensor_parallel import random

    def get_rng_state(*_: object, **__: object) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: Tensor, *_: object, **__: object) -> None:
        torch.set_rng_state(state)

    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)  # type: ignore[assignment]
    torch.cuda.get_rng_state = random._get_cuda_rng_state = get_rng_state  # type: ignore[assignment]
    torch.cuda.set_rng_state = random._set_cuda_rng_state = set_rng_state  # type: ignore[assignment]


def _of_whole_tensors(scatter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(scatter)
    def wrapped(tensor: Tensor, scatter_list: Sequence[Tensor] | None = None, *args: Any, **kwargs: Any) -> Any:
        whole = None if scatter_list is None else [part.contiguous() for part in scatter_list]
        return scatter(tensor, whole, *args, **kwargs)

    return wrapped


def _redirect_setup() -> None:
    from megatron.bridge.training import initialize, setup
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nemo_xtoken.integrations.megatron.checkpoint_writing import collect_writers_results_here

    initialize_on_gpu = setup.initialize_megatron

    def initialize_megatron(cfg: Any, **options: Any) -> Any:
        groups = initialize_on_gpu(cfg, **{**options, "allow_no_cuda": True})
        model_parallel_cuda_manual_seed(cfg.rng.seed, force_reset_rng=True)
        return groups

    setup.initialize_megatron = initialize_megatron  # type: ignore[assignment]
    setup.set_jit_fusion_options = lambda *_: None
    initialize.compile_helpers = lambda: None
    collect_writers_results_here()
