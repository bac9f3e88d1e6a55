"""Sees a step as a whole: what its losses are divided by is counted before its first micro batch runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as pl
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_xtoken.types import DistillBatch


class GlobalBatch(pl.Callback):
    """Brought by the model itself; hooks into NeMo's steps by the events that NeMo offers for it."""

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """Take this rank's micro batches of the step from the loader, and let the run count them."""
        model: Any = step.pl_module
        lengths = model.run.lengths
        micro_batches = [lengths.padded(batch) for batch in _take(step.data, get_num_microbatches())]
        if step.forward_only:
            model.run.begin_validation()
        else:
            data = step.trainer.datamodule
            sizes = {"seq_length": lengths.student, "micro_batch_size": data.micro_batch_size}
            model.run.begin(micro_batches, step.model, sizes)
        return dataclasses.replace(step, data=iter(micro_batches))

    def on_megatron_step_end(self, step: MegatronStep, microbatch_outputs: Any) -> None:
        """Take in what the micro batches reported."""
        model: Any = step.pl_module
        if step.forward_only:
            model.run.end_validation(microbatch_outputs)
        else:
            model.run.end(microbatch_outputs, step.trainer.global_step + 1)


def _take(data: Any, count: int) -> list[DistillBatch]:
    items = [next(data) for _ in range(count)]
    return [item[0] if isinstance(item, tuple) else item for item in items]
