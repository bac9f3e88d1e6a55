"""W that is trained along with the student: a rank's rows of it, their optimizer, their part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.utils import make_sharded_tensor_for_checkpoint, make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.losses.learnable import row_parameters, row_weights
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.projection.matrix import NO_TOKEN


def learnt_projection_path(checkpoint: Path, teacher: str) -> Path:
    """The file of a teacher's learnt W within a checkpoint."""
    return checkpoint / f"learnt-projection-{teacher}.safetensors"


class LearntProjectionSettings(Protocol):
    """What the training of a teacher's W has to know, whatever framework the teacher is from."""

    @property
    def name(self) -> str:
        """Of the teacher, and so of the file."""
        ...

    @property
    def projection_lr(self) -> float:
        """Learning rate of W."""
        ...


class LearntProjection:
    """The rows of one teacher's W that belong to this rank's rows of the student's head, [V_S/tp, K], padded ids empty.

    Rows are softmaxes of `parameters` over their entries, so they are distributions whatever the optimizer does: Adam
    with a constant learning rate, no weight decay, and a gradient that is neither clipped nor in the student's norm.
    Each rank of the last pipeline stage has one; over dp and cp they are copies.
    """

    def __init__(
        self, teacher: LearntProjectionSettings, matrix: ProjectionMatrix, student_head: Tensor, layout: Layout
    ) -> None:
        self.name, self.matrix, self.groups = teacher.name, matrix, layout.groups
        local_rows = len(student_head)
        first = layout.groups.tp.rank() * local_rows
        device = student_head.device
        own = slice(first, first + local_rows)
        indices, weights = (torch.as_tensor(x[own], device=device) for x in (matrix.indices, matrix.weights))
        self.num_rows = len(indices)
        self.filled = _pad_rows(indices != NO_TOKEN, local_rows)
        self.parameters = row_parameters(_pad_rows(weights, local_rows), self.filled).requires_grad_()
        self.optimizer = torch.optim.Adam([self.parameters], lr=teacher.projection_lr)
        self.optimizer.state[self.parameters] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(self.parameters),
            "exp_avg_sq": torch.zeros_like(self.parameters),
        }

    def weights(self) -> Tensor:
        """[local rows of W, K] for `parallel.distillation_loss`, differentiable; no padded ids."""
        return row_weights(self.parameters, self.filled)[: self.num_rows]

    def step(self, num_tokens: int) -> None:
        """One step of Adam with what backward passes added up, divided by the tokens of the global batch.

        That is the student's normalisation. One all-reduce of the gradient over dp x cp; every rank that has a part
        must call it.
        """
        gradient = self.parameters.grad
        if gradient is None:
            gradient = self.parameters.grad = torch.zeros_like(self.parameters)
        dist.all_reduce(gradient, group=self.groups.dp_cp)
        gradient /= max(num_tokens, 1)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sharded_state_dict(self) -> dict[str, Any]:
        """Megatron's sharded tensors of the parameters and of Adam's state; cut over tp, they load into any layout."""
        key = f"projection.{self.name}"
        state = self._state()
        step = make_sharded_tensor_for_checkpoint(state.pop("step").view(1), f"{key}.step")
        # As of the head itself, the number of padded rows is the layout's.
        rows = {
            name: make_tp_sharded_tensor_for_checkpoint(tensor, f"{key}.{name}", allow_shape_mismatch=True)
            for name, tensor in state.items()
        }
        return {"step": step, **rows}

    def load_state_dict(self, loaded: Mapping[str, Tensor]) -> None:
        """Take in what `sharded_state_dict` asked for."""
        for name, tensor in self._state().items():
            tensor.copy_(loaded[name].view_as(tensor))

    def save(self, checkpoint: Path) -> None:
        """Write W as it is by now into a checkpoint, as an ordinary projection file, whole or not at all.

        Collectives: an all-gather of the rows over tp; every rank that has a part must call it.
        """
        tp, local = self.groups.tp, row_weights(self.parameters, self.filled).detach()
        rows = local.new_empty(tp.size() * len(local), local.shape[1])
        dist.all_gather_into_tensor(rows, local, group=tp)
        if tp.rank() == 0 and self.groups.dp_cp.rank() == 0:
            weights = rows[: self.matrix.student_vocab_size].cpu().numpy().astype(np.float32)
            learnt = replace(self.matrix, weights=weights, exact=self.matrix.exact_rows, beta=None, gamma=None)
            learnt.save(learnt_projection_path(checkpoint, self.name))

    def _state(self) -> dict[str, Tensor]:
        return {"parameters": self.parameters.detach(), **self.optimizer.state[self.parameters]}


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """[n, K] -> [rows, K], zeros behind."""
    return torch.cat([x, x.new_zeros(rows - len(x), x.shape[1])])
