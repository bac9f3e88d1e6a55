"""A teacher's whole head beside its stored hidden states, so that each rank can take the rows it owns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_xtoken.errors import DataError
from nemo_xtoken.parallel import HeadOptions
from nemo_xtoken.whole_file import whole_file

FILE = "head.safetensors"


@dataclass(frozen=True)
class StoredHead:
    """weight [V_T, h] without padded ids, in the teacher's precision; a bias in `options` is of these rows."""

    weight: Tensor
    options: HeadOptions

    def save(self, directory: Path) -> None:
        """Whole or not at all."""
        tensors = {"weight": self.weight.contiguous()}
        if self.options.bias is not None:
            tensors["bias"] = self.options.bias.contiguous()
        soft_cap = self.options.soft_cap
        metadata = {"scale": repr(self.options.scale), "soft_cap": "" if soft_cap is None else repr(soft_cap)}
        with whole_file(directory / FILE) as unfinished:
            save_file(tensors, unfinished, metadata)

    @classmethod
    def load(cls, directory: Path) -> StoredHead:
        """Memory-mapped. Raises DataError where it is missing or damaged."""
        path = directory / FILE
        if not path.is_file():
            raise DataError(
                f"{directory} has no {FILE}: the cache is not complete; run nemo-xtoken teacher cache again"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            soft_cap = metadata["soft_cap"]
            options = HeadOptions(tensors.get("bias"), float(metadata["scale"]), float(soft_cap) if soft_cap else None)
            return cls(tensors["weight"], options)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"cannot read {path} ({error}); delete it and write the cache again") from error

    def rows(self, ids: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, HeadOptions]:
        """The rows of these ids, on a device, and the options of them."""
        ids = ids.cpu()
        weight = self.weight.index_select(0, ids).to(device, dtype)
        options = self.options.of_rows(ids)
        return weight, options if options.bias is None else replace(options, bias=options.bias.to(device, dtype))
