"""The distillation loss by NeMo's contract of a loss reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_xtoken.integrations.megatron.step import Report
from nemo_xtoken.types import DistillBatch

if TYPE_CHECKING:
    from nemo_xtoken.integrations.nemo.model import CrossTokenizerDistillationModel


class DistillationLossReduction(MegatronLossReduction):
    """From the hidden states of a micro batch to loss sums, and from the sums of all to the mean loss of the step."""

    def __init__(self, model: CrossTokenizerDistillationModel) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: a module would become a part of this one

    def forward(self, batch: DistillBatch, forward_out: Tensor) -> tuple[Tensor, Tensor, Report]:
        """Loss sum, number of tokens it is over, and sums to report; `forward_out` [b, s/cp, h]."""
        (model,) = self._model
        return model.run.objective.loss_func(model.run.scales, batch, model, forward_out)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The mean over all micro batches and dp x cp. One all-reduce."""
        (model,) = self._model
        loss: Any = sum(report["loss"].double() for report in losses_reduced_per_micro_batch)
        dist.all_reduce(loss, group=model.run.layout.groups.dp_cp)
        return (loss[0] / loss[1].clamp(min=1)).to(torch.float32)
