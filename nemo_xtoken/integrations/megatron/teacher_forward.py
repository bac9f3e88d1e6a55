"""A teacher's model in a layout of its own, and its forward passes through Megatron's schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_xtoken.config import TeacherConfig
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import rows
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.models import build_gpt


class TeacherTokens(NamedTuple):
    """What a teacher is run on: tokens and position ids of a micro batch, [b, t] int64, whole sequences."""

    tokens: Tensor
    position_ids: Tensor


def build_teacher(
    teacher: TeacherConfig, layout: Layout, ids: HeadIds, max_sequence_length: int, params_dtype: torch.dtype
) -> GPTModel:
    """This rank's part of a teacher, of its pipeline stage, frozen and in eval mode; its weights are not loaded yet.

    Megatron's global groups have to be those of `layout`.
    """
    model = build_gpt(
        teacher.model,
        layout.parallel,
        vocab_size=ids.size,
        max_sequence_length=max_sequence_length,
        device=layout.device.type,
        seed=0,
        params_dtype=params_dtype,
        fp8=teacher.fp8,
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
    ).to(layout.device)
    model.requires_grad_(False)
    model.eval()
    return model


@torch.no_grad()
def forward_all(
    model: GPTModel, layout: Layout, inputs: Sequence[TeacherTokens], take: Callable[[int, Tensor], None]
) -> None:
    """Run a teacher over micro batches of one shape, which are the same on every rank of its tp, cp and pp groups.

    take: called on the last stage, in order, with a micro batch's place in `inputs` and its final hidden states,
    [b*t/cp, h] of this cp rank's positions. Megatron's global groups have to be those of `layout`.
    """
    if not inputs:
        return

    def forward(numbered: Iterator[tuple[int, TeacherTokens]], model: GPTModel) -> tuple[Tensor, Any]:
        number, batch = next(numbered)
        tokens, positions = (x.to(layout.device) for x in batch)

        def handed_over(hidden: Tensor, *, non_loss_data: bool) -> None:
            take(number, rows(hidden))

        return model(*model_inputs(tokens, positions, layout.groups.cp)), handed_over

    sequences, length = inputs[0].tokens.shape
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(enumerate(inputs)),
        model=model,
        num_microbatches=len(inputs),
        seq_length=length,
        micro_batch_size=sequences,
        forward_only=True,
        collect_non_loss_data=True,
    )
