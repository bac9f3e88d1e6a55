"""A frozen teacher on the student's ranks: the same tensor, context and data parallel groups, its own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken import parallel
from nemo_xtoken.config import LossConfig, ParallelConfig, TeacherConfig
from nemo_xtoken.data.manifest import Side
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight, rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.megatron.models import build_gpt
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.types import DistillBatch


class TeacherSettings(Protocol):
    """What the loss has to know of a teacher, whatever framework its model is from."""

    @property
    def name(self) -> str:
        """Among several teachers."""
        ...

    @property
    def weight(self) -> float:
        """Of its part in L_KD."""
        ...

    @property
    def loss(self) -> LossConfig:
        """How the student is compared with it."""
        ...


class ColocatedTeacher:
    """The teacher's final hidden states, and the part of its head that this rank owns.

    name, weight  of the config
    head  [owned, h_T], the rows `pair.teacher_rows`; cut once, at the start
    head_options  bias of these rows, scale and soft cap
    pair  this rank's part of W, cut for the loss
    learnt_projection  the same part of W where it is trained, None where it stays as it is
    """

    def __init__(
        self,
        config: TeacherSettings,
        model: GPTModel,
        matrix: ProjectionMatrix,
        student_head: Tensor,
        layout: Layout,
        learnt_projection: LearntProjection | None = None,
    ) -> None:
        self.name, self.weight, self.loss = config.name, config.weight, config.loss
        self.model, self.cp_group = model, layout.groups.cp
        self.pair = parallel.shard_pair(matrix, config.loss, student_head, layout.groups.tp)
        self.head = parallel.cut_head(head_weight(model), self.pair, layout.groups.tp)
        self.head_options = parallel.cut_options(head_options(model), self.pair, layout.groups.tp)
        self.learnt_projection = learnt_projection

    def projection_weights(self) -> Tensor | None:
        """W's weights where they are trained: this rank's rows, differentiable."""
        return None if self.learnt_projection is None else self.learnt_projection.weights()

    @torch.no_grad()
    def hidden(self, batch: DistillBatch) -> Tensor:
        """[b*t/cp, h_T] of the last layer after its norm, without gradient, the same on every tp rank."""
        return rows(self.model(*model_inputs(batch.teacher_tokens, batch.teacher_position_ids, self.cp_group)))


def load_teacher(
    config: TeacherConfig, layout: Layout, *, tokenizer: Side, max_sequence_length: int, params_dtype: torch.dtype
) -> tuple[GPTModel | None, Path]:
    """The teacher's model, in eval mode and frozen, and the checkpoint its weights are from. Every rank must call it.

    With pipeline stages the model is whole on the ranks of the last stage and None on the others.
    Raises CheckpointError where the checkpoint is missing or of another model or tokenizer.
    """
    groups = layout.teacher_groups()
    ids = HeadIds(config.model.vocab_size or tokenizer.vocab_size, tokenizer.fingerprint)
    model = None
    if layout.is_last_stage:
        model = build_gpt(
            config.model,
            teacher_parallel(layout.parallel),
            vocab_size=ids.size,
            max_sequence_length=max_sequence_length,
            device=layout.device.type,
            seed=0,
            params_dtype=params_dtype,
            pg_collection=groups,
        ).to(layout.device)
        model.requires_grad_(False)
        model.eval()
    return model, load_model(model, Path(config.checkpoint), f"teacher {config.name!r}", ids)


def teacher_parallel(student: ParallelConfig) -> ParallelConfig:
    """The student's layout with all of the teacher's layers in one stage."""
    return replace(student, pipeline_model_parallel_size=1, virtual_pipeline_model_parallel_size=1)
