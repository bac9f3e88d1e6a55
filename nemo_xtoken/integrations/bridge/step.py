"""Bridge's forward step for distillation: our loss of a micro batch, by Bridge's contract.

Counts of a global batch are known before its first forward pass: the step takes all of its micro batches from the
iterator, counts, and hands them out one by one. Micro batches that validation asks for only report.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.bridge.training.state import GlobalState
from megatron.core.num_microbatches_calculator import get_num_microbatches
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.bridge.going_on import check_goes_on
from nemo_xtoken.integrations.bridge.placement import layout_of
from nemo_xtoken.integrations.bridge.settings import check_vocabulary, settle
from nemo_xtoken.integrations.bridge.student import check_first_token, keep_in_checkpoint
from nemo_xtoken.integrations.bridge.teacher import build_teachers
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_weight, tap_head
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.step import Counts, Objective, Report, Scales, count_global_batch
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.types import DistillBatch

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, Report]]


class DistillationStep:
    """The `forward_step_func` of `pretrain(config, step, callbacks=[BalanceCallback(step)])`.

    Making it registers a hook on the student's provider, which taps the head and builds the teachers. `layout` and
    `objective` are there once the student has been built, `counts` are those of the global batch that is trained on.
    """

    layout: Layout
    objective: Objective
    counts: Counts

    def __init__(self, config: DistillationContainer) -> None:
        settle(config)
        check_goes_on(config)
        check_vocabulary(config)
        self.config = config
        self.balance = Balance(config.balance)
        self._waiting: deque[DistillBatch] = deque()
        self._scales = Scales()
        config.model.register_pre_wrap_hook(self._prepare)

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        """How the student is compared with each teacher."""
        return tuple(teacher.loss for teacher in self.config.teachers)

    def __call__(
        self,
        state: GlobalState,
        data_iterator: Iterator[DistillBatch],
        model: Any,
        return_schedule_plan: bool = False,
    ) -> tuple[Tensor, LossFunction]:
        """The student's output for the next micro batch and what compares it: hidden states on the last stage."""
        del state
        if return_schedule_plan:
            raise ConfigError("schedule plans (overlap_moe_expert_parallel_comm) have no distillation; set it to false")
        if not model.training:
            return self.forward(Scales(), data_iterator, model)
        if not self._waiting:
            self._take_global_batch(data_iterator)
        return self.forward(self._scales, iter([self._waiting.popleft()]), model)

    def forward(self, scales: Scales, micro_batches: Iterator[DistillBatch], model: Any) -> tuple[Tensor, LossFunction]:
        """The same for given scales and the next of these micro batches."""
        batch = next(micro_batches).to(self.layout.device)
        inputs = model_inputs(batch.student_tokens, batch.student_position_ids, self.layout.groups.cp)
        return model(*inputs), partial(self._loss, scales, batch, model)

    def _loss(self, scales: Scales, batch: DistillBatch, model: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Report]:
        # Megatron's wrapper for bf16 models hands out what they computed as float32.
        hidden = hidden.to(head_weight(unwrap(model)).dtype)
        loss, num_tokens, report = self.objective.loss_func(scales, batch, model, hidden)
        if model.training and self.config.teachers:
            report["ratio"] = torch.tensor([self.balance.kd_weight, 1.0], device=loss.device)
            if len(self.config.teachers) > 1:
                report["kd"] = self._part_of_total(report)
        return loss, num_tokens, report

    def _part_of_total(self, report: Report) -> Tensor:
        """[2]: this micro batch's parts of the whole L_KD and of 1; Bridge adds them up over the global batch."""
        parts = [
            teacher.weight * report[f"kd/{teacher.name}"][0] / max(chunks, 1)
            for teacher, chunks in zip(self.config.teachers, self.counts.chunks, strict=True)
        ]
        part_of_one = 1.0 / (get_num_microbatches() * self.layout.groups.dp_cp.size())
        return torch.stack([torch.stack(parts).sum(), torch.tensor(part_of_one, device=parts[0].device)])

    def _take_global_batch(self, data_iterator: Iterator[DistillBatch]) -> None:
        if self.balance.needs_measuring and self.config.teachers:
            raise ConfigError(
                "the dynamic balance needs a ratio to begin with: call pretrain(config, step, "
                "callbacks=[BalanceCallback(step)])"
            )
        micro_batches = [next(data_iterator) for _ in range(get_num_microbatches())]
        self.counts = count_global_batch(micro_batches, self.losses, self.layout)
        balance = self.balance
        ceiling = balance.config.max_ratio if balance.config.mode == "micro_batch" else None
        self._scales = Scales.of(self.counts, balance.kd_weight, balance.ce_weight, ceiling)
        self._waiting.extend(micro_batches)

    def _prepare(self, models: list[Any]) -> list[Any]:
        """The hook: the student is built and has its weights, and is not wrapped yet."""
        config = self.config
        self.layout = layout_of(config)
        (student,) = models
        check_first_token(student, config.dataset.manifest().student.bos_id, self.layout.device)
        tap_head(student).to(self.layout.device)
        head = head_weight(student) if self.layout.is_last_stage else None
        teachers = build_teachers(config, self.layout, head)
        self.objective = Objective(self.layout, config.dataset.manifest().student.vocab_size, teachers)
        keep_in_checkpoint(student, self.balance, self.objective.learnt_projections)
        return models
