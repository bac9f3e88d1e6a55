"""One shard of a cache: a safetensors file, and beside it, written last, its size and SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_xtoken.errors import DataError
from nemo_xtoken.whole_file import whole_file, write_whole


@dataclass(frozen=True)
class ShardFile:
    """The shard of this number in a cache's directory. It is done when its record is there and names its size."""

    directory: Path
    number: int

    @property
    def path(self) -> Path:
        """The tensors."""
        return self.directory / f"shard-{self.number:06d}.safetensors"

    @property
    def record(self) -> Path:
        """Size and checksum."""
        return self.path.with_suffix(".json")

    @property
    def is_done(self) -> bool:
        """Whether it was written to its end; one that is shorter than it was is not."""
        stored = self._stored()
        return stored is not None and self.path.is_file() and self.path.stat().st_size == stored["bytes"]

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Whole or not at all, whenever the process is killed."""
        with whole_file(self.path) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
            with unfinished.open("r+b") as file:
                record = {"bytes": unfinished.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                os.fsync(file.fileno())
        write_whole(self.record, json.dumps(record) + "\n")

    def tensors(self) -> dict[str, Tensor]:
        """Memory-mapped: what is not used is not read. Raises DataError for a damaged file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read {self.path} ({error}); delete it and write the cache again") from error

    def check(self) -> None:
        """Raises DataError where the file is not what was written."""
        stored = self._stored()
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if stored is None or found != stored["sha256"]:
            raise DataError(
                f"{self.path} is damaged: its checksum is not that of {self.record.name}; delete both and run "
                "nemo-xtoken teacher cache again, which writes what is missing"
            )

    def _stored(self) -> dict[str, Any] | None:
        try:
            return cast("dict[str, Any]", json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
