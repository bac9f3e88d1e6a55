"""What FP8 does to a run's numbers, by layer and step: one JSON line per logged step in fp8.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.fp8.rounding import SLOTS
from nemo_xtoken.fp8.statistics import LARGEST, SUMS, Statistics, summary
from nemo_xtoken.integrations.megatron.fp8_layers import layers_of
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.metrics import keep_lines_up_to

RECORD_FILE = "fp8.jsonl"


class Fp8Record:
    """Collects the statistics of the emulated layers at every step that is logged; without such layers it does nothing.

    Every rank has one and calls it; rank 0 writes.
    """

    def __init__(self, config: RunConfig, students: Sequence[GPTModel], layout: Layout, step: int) -> None:
        self._active = config.fp8 is not None and config.fp8.backend == "emulate"
        layers = {name: layer for student in students for name, layer in layers_of(student).items()}
        self._statistics = {name: layer.fp8.statistics for name, layer in layers.items()}
        self._layout, self._interval = layout, config.train.log_interval
        self._path = Path(config.run_dir) / RECORD_FILE
        if layout.rank == 0:
            keep_lines_up_to(self._path, step)

    def begin(self, step: int) -> None:
        """Before a step's passes."""
        for statistics in self._statistics.values():
            statistics.clear()
            statistics.collecting = step % self._interval == 0

    def end(self, step: int) -> None:
        """After them: over all ranks, to the file. Raises XTokenError where that can't be written."""
        if step % self._interval or not self._active:
            return
        layers = self._gathered()
        for statistics in self._statistics.values():
            statistics.collecting = False
        if self._layout.rank == 0:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "layers": layers}) + "\n")
            except OSError as error:
                raise XTokenError(f"{self._path}: step {step} can't be logged: {error.strerror or error}") from error

    def _gathered(self) -> dict[str, Any]:
        """The summaries of all layers, over tp, dp and cp, of all pipeline stages."""
        own: dict[str, Any] = {}
        if self._statistics:
            group: Any = parallel_state.get_amax_reduction_group(with_context_parallel=True)
            sums, largest = _stacked(self._statistics)
            dist.all_reduce(sums, group=group)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            own = {
                name: {slot: summary(sums[i, j], largest[i, j]) for j, slot in enumerate(SLOTS)}
                for i, name in enumerate(self._statistics)
            }
        stages: list[Any] = [None] * self._layout.groups.pp.size()
        dist.all_gather_object(stages, own, group=self._layout.groups.pp)
        return {name: layer for stage in stages for name, layer in stage.items()}


def _stacked(layers: dict[str, Statistics]) -> tuple[torch.Tensor, torch.Tensor]:
    """[layers, 3 tensors, sums] and [layers, 3 tensors, largest values]."""
    nothing = torch.zeros(len(SUMS), dtype=torch.float64), torch.zeros(len(LARGEST))
    sums = [[found.sums.get(slot, nothing[0]) for slot in SLOTS] for found in layers.values()]
    largest = [[found.largest.get(slot, nothing[1]) for slot in SLOTS] for found in layers.values()]
    return _stack(sums), _stack(largest)


def _stack(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.stack(row) for row in rows])
