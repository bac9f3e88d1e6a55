"""A teacher as the loss meets it: its part of W and of the head on this rank, and where its hidden states come from."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from nemo_xtoken import parallel
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.teachers.protocol import LearntWeights, TeacherSettings, TeacherSource
from nemo_xtoken.types import DistillBatch, SparseLogits


class Teacher:
    """The teacher's final hidden states, and the part of its head that this rank owns.

    name, weight, loss  of the config
    source  where hidden states come from
    head    [owned, h_T], the rows `pair.teacher_rows`; cut once, at the start. None where probabilities are given
    head_options  bias of these rows, scale and soft cap
    pair    this rank's part of W, cut for the loss
    learnt_projection  the same part of W where it is trained, None where it stays as it is
    """

    def __init__(
        self,
        config: TeacherSettings,
        source: TeacherSource,
        matrix: ProjectionMatrix,
        student_head: Tensor,
        tp_group: dist.ProcessGroup,
        learnt_projection: LearntWeights | None = None,
    ) -> None:
        self.name, self.weight, self.loss = config.name, config.weight, config.loss
        self.source, self.learnt_projection = source, learnt_projection
        self.pair = parallel.shard_pair(matrix, config.loss, student_head, tp_group)
        head = source.head(self.pair)
        self.head = None if head is None else head.weight
        self.head_options = parallel.HeadOptions() if head is None else head.options

    def projection_weights(self) -> Tensor | None:
        """W's weights where they are trained: this rank's rows, differentiable."""
        return None if self.learnt_projection is None else self.learnt_projection.weights()

    def hidden(self, batch: DistillBatch) -> Tensor | SparseLogits:
        """[b*t/cp, h_T] of the last layer after its norm, without gradient, the same on every tp rank; or entries."""
        return self.source.hidden(batch)
