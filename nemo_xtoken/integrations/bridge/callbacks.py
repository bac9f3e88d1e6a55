"""Bridge callback: what a distillation does between two steps, and an end to runs whose loss is lost."""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func

from nemo_xtoken.data.batches import GlobalBatches
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.integrations.bridge.step import DistillationStep
from nemo_xtoken.integrations.megatron.step import Scales, count_global_batch, sum_reports, with_total


class BalanceCallback(Callback):
    """Gives the step's balance the global means of the step before, on every rank, and each W that is trained its step.

    Before the first step of a run it measures the means by a forward pass over the first global batch.
    """

    def __init__(self, step: DistillationStep) -> None:
        self.step = step

    def on_train_start(self, context: CallbackContext) -> None:
        """Take in what the checkpoint has, or measure."""
        balance, config = self.step.balance, self.step.config
        if config.balance.mode != "dynamic" or not config.teachers:
            return
        balance.ratio = self._of_last_stage(balance.ratio)
        if balance.needs_measuring:
            means = self._measure(context)
            balance.update(means["kd"], means["ce"] or 0.0)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Take in the step's means, and step W. Raises XTokenError where loss or gradient is not a number any more."""
        losses = {name: float(value) for name, value in (context.loss_dict or {}).items()}
        losses = self._of_last_stage(losses)
        # Where the scale of fp16's loss was too large Bridge skips the step and has no norm.
        for name, value in (("loss", losses["loss"]), ("gradient's norm", context.grad_norm)):
            if value is not None and not math.isfinite(value):
                number = context.state.train_state.step + 1
                raise XTokenError(f"the {name} is {value} at step {number}; lower optimizer.lr or warm up longer")
        teachers = self.step.config.teachers
        if not teachers:
            return
        # Bridge divides by what was counted, which may be nothing.
        means = with_total({name: None if math.isnan(x) else x for name, x in losses.items()}, teachers)
        self.step.balance.update(means["kd"], means["ce"] or 0.0)
        for projection in self.step.objective.learnt_projections:
            projection.step(self.step.counts.tokens)

    def _measure(self, context: CallbackContext) -> dict[str, float | None]:
        """Global means of the losses over the first global batch, with the weights as they are."""
        step, train, models = self.step, self.step.config.train, context.model
        data, dp = step.config.dataset, step.layout.groups.dp
        batches = GlobalBatches(
            data.stream(data.data.parts),
            train.micro_batch_size,
            get_num_microbatches() * train.micro_batch_size * dp.size(),
            dp.rank(),
            dp.size(),
            context.state.train_state.consumed_train_samples,
        )
        micro_batches = next(batches)
        counts = count_global_batch(micro_batches, step.losses, step.layout)
        scales = Scales.of(counts, 1.0, 1.0)
        for model in models:
            model.eval()
        reports = get_forward_backward_func()(
            forward_step_func=lambda iterator, model: step.forward(scales, iterator, model),
            data_iterator=iter(micro_batches),
            model=models,
            num_microbatches=len(micro_batches),
            seq_length=data.data.student_sequence_length,
            micro_batch_size=train.micro_batch_size,
            forward_only=True,
        )
        for model in models:
            model.train()
        return with_total(sum_reports(reports, step.layout), step.config.teachers)

    def _of_last_stage(self, value: Any) -> Any:
        """The last pipeline stage's value, on every stage."""
        stages = self.step.layout.groups.pp
        if stages.size() == 1:
            return value
        shared = [value]
        source = dist.get_global_rank(stages, stages.size() - 1)
        dist.broadcast_object_list(shared, source, group=stages)
        return shared[0]
