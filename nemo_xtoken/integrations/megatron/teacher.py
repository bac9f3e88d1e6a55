"""A frozen teacher on the student's ranks: the same tensor, context and data parallel groups, its own model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken import parallel
from nemo_xtoken.config import ParallelConfig, TeacherConfig
from nemo_xtoken.data.manifest import Side
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight, rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.megatron.models import build_gpt
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.teachers import LearntWeights, SampleRange, Teacher, TeacherHead, TeacherSettings
from nemo_xtoken.types import DistillBatch


class ColocatedSource:
    """A model on the student's ranks that is run when its hidden states are asked for.

    model  None on the pipeline stages without the student's head
    """

    def __init__(self, model: GPTModel | None, layout: Layout) -> None:
        self._model, self._groups = model, layout.groups

    @property
    def model(self) -> GPTModel:
        """The model, where this rank has it."""
        assert self._model is not None
        return self._model

    def head(self, pair: parallel.ShardedPair) -> TeacherHead:
        """The rows `pair.teacher_rows`, sent round the tp group that the model is cut over."""
        return TeacherHead(head_weight(self.model), head_options(self.model)).cut(pair, self._groups.tp)

    def begin(self, announced: Iterator[SampleRange]) -> None:
        """Nothing is done ahead."""

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Nothing is computed before it is asked for."""

    @torch.no_grad()
    def hidden(self, batch: DistillBatch) -> Tensor:
        """[b*t/cp, h_T] of the last layer after its norm, without gradient, the same on every tp rank."""
        return rows(self.model(*model_inputs(batch.teacher_tokens, batch.teacher_position_ids, self._groups.cp)))

    def close(self) -> None:
        """Nothing outlives the process."""


class ColocatedTeacher(Teacher):
    """A teacher whose model is on the student's ranks, with the student's tp, cp and dp groups."""

    def __init__(
        self,
        config: TeacherSettings,
        model: GPTModel,
        matrix: ProjectionMatrix,
        student_head: Tensor,
        layout: Layout,
        learnt_projection: LearntWeights | None = None,
    ) -> None:
        source = ColocatedSource(model, layout)
        super().__init__(config, source, matrix, student_head, layout.groups.tp, learnt_projection)


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
            fp8=config.fp8,
        ).to(layout.device)
        model.requires_grad_(False)
        model.eval()
    return model, load_model(model, Path(config.checkpoint), f"teacher {config.name!r}", ids)


def teacher_parallel(student: ParallelConfig) -> ParallelConfig:
    """The student's layout with all of the teacher's layers in one stage."""
    return replace(student, pipeline_model_parallel_size=1, virtual_pipeline_model_parallel_size=1)
