"""Transformer Engine's Python code without its CUDA library: the recipes, and how scales follow from largest values."""

from __future__ import annotations

import enum
import importlib
import os
import sys
import types
from typing import Any


class Nothing:
    """Stands for a function or a constant of the CUDA library that is never used here."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> Any:
        raise RuntimeError(f"{self.__name__} is in Transformer Engine's CUDA library")

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nothing) and other.__name__ == self.__name__

    def __int__(self) -> int:
        return 0


class NoLibrary(types.ModuleType):
    """`transformer_engine_torch`: names that begin with a capital are classes, others are functions."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _class(name) if name[0].isupper() else Nothing(name)
        setattr(self, name, found)
        return found


def _class(name: str) -> Any:
    def member(_: type, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Nothing(f"{name}.{attribute}")

    meta = type(f"Meta{name}", (type,), {"__getattr__": member})
    return meta(name, (), {"__init__": lambda *_, **__: None})


def install() -> None:
    """Make `import transformer_engine.pytorch` work in this process. Raises ImportError where it is not installed."""
    # Compiled code may round otherwise, and compiling takes minutes.
    os.environ |= {"NVTE_PROJECT_BUILDING": "1", "NVTE_TORCH_COMPILE": "0", "TORCHDYNAMO_DISABLE": "1"}
    importlib.import_module("transformer_engine.common.recipe")
    library = NoLibrary("transformer_engine_torch")
    numbers = {"kFloat32": 4, "kFloat16": 5, "kBFloat16": 6, "kFloat8E4M3": 7, "kFloat8E5M2": 8, "kFloat4E2M1": 10}
    library.DType = enum.IntEnum("DType", {"kByte": 0, "kInt32": 2, **numbers})  # type: ignore[attr-defined]
    kinds = {"NVTE_No_Backend": -1, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2}
    library.NVTE_Fused_Attn_Backend = enum.IntEnum("Backend", kinds)  # type: ignore[attr-defined]
    library.get_cudnn_version = library.get_cublasLt_version = lambda *_: 0  # type: ignore[attr-defined]
    sys.modules["transformer_engine_torch"] = library
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda _: None
    for name in [name for name in sys.modules if name.startswith("transformer_engine.pytorch")]:
        del sys.modules[name]
    importlib.import_module("transformer_engine.pytorch")
