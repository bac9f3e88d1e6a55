"""Starting a Triton program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def launch(program: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a program once per point of the grid, on the device of its first argument, whatever the current one is."""
    with torch.cuda.device_of(first):
        program[grid](first, *arguments, **constants)
