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
from nemo_xtoken.integrations.bridge.placement import layout_of
from nemo_xtoken.integrations.bridge.settings import check_vocabulary, settle
from nemo_xtoken.integrations.bridge.student import prepare_student
from nemo_xtoken.integrations.bridge.teacher import build_teacher
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.step import Objective, Report, Scales, count_global_batch
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.types import DistillBatch

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, Report]]


class DistillationStep:
    """The `forward_step_func` of `pretrain(config, step, callbacks=[BalanceCallback(step)])`.

    Making it registers a hook on the student's provider, which taps the head and builds the teacher. `layout` and
    `objective` are there once the student has been built.
    """

    layout: Layout
    objective: Objective

    def __init__(self, config: DistillationContainer) -> None:
        settle(config)
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
        return loss, num_tokens, report

    def _take_global_batch(self, data_iterator: Iterator[DistillBatch]) -> None:
        if self.balance.needs_measuring and self.config.teachers:
            raise ConfigError(
                "the dynamic balance needs a ratio to begin with: call pretrain(config, step, "
                "callbacks=[BalanceCallback(step)])"
            )
        micro_batches = [next(data_iterator) for _ in range(get_num_microbatches())]
        counts = count_global_batch(micro_batches, self.losses, self.layout)
        balance = self.balance
        ceiling = balance.config.max_ratio if balance.config.mode == "micro_batch" else None
        self._scales = Scales.of(counts, balance.kd_weight, balance.ce_weight, ceiling)
        self._waiting.extend(micro_batches)

    def _prepare(self, models: list[Any]) -> list[Any]:
        """The hook: the student is built and has its weights, and is not wrapped yet."""
        config = self.config
        self.layout = layout_of(config)
        (student,) = models
        prepare_student(student, self.balance)
        student.to(self.layout.device)
        manifest = config.dataset.manifest()
        head = head_weight(student) if self.layout.is_last_stage else None
        teacher = None
        if config.teachers:
            teacher = build_teacher(config, config.teachers[0], manifest, self.layout, head)
        teachers = () if teacher is None else (teacher,)
        self.objective = Objective(self.layout, manifest.student.vocab_size, teachers)
        return models
