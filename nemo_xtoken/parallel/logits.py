"""From hidden states to logits: the head's matrix product, and what some models do after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.parallel.heads import cut_head
from nemo_xtoken.parallel.memory import slabs
from nemo_xtoken.parallel.pair import ShardedPair


@dataclass(frozen=True, eq=False)
class HeadOptions:
    """What a head does besides its weight: logits = cap(scale·(hidden·weightᵀ + bias)).

    bias      [V/tp], for the rows of the weight's shard; None for none
    scale     Cohere's logit_scale, 1 / logits_scaling of Granite
    soft_cap  Gemma 2's final_logit_softcapping: cap(x) = soft_cap·tanh(x / soft_cap); None for cap(x) = x

    Raises ConfigError for a scale or a soft cap that is not positive.
    """

    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"a head's scale must be positive, got {self.scale}; Granite's logits_scaling divides")
        if self.soft_cap is not None and self.soft_cap <= 0:
            raise ConfigError(f"a head's soft_cap must be positive, got {self.soft_cap}; None means no cap")

    def of_rows(self, rows: Tensor | slice) -> HeadOptions:
        """The options of some rows of the weight, as `weight[rows]` is their weight: rows [selected] int64."""
        return self if self.bias is None else replace(self, bias=self.bias[rows])


PLAIN = HeadOptions()
"""A head that is its weight alone."""


def logits_of(rows: Tensor, head: Tensor, options: HeadOptions = PLAIN, out: Tensor | None = None) -> Tensor:
    """Logits of hidden states on this rank's columns, in the precision of sums; no collective.

    rows [rows, h], head [V/tp, h] -> [rows, V/tp], in `out` where it is given, and then without a gradient.
    Raises ConfigError for a bias of another length than the head.
    """
    if options.bias is not None and options.bias.shape != head.shape[:1]:
        raise ConfigError(
            f"the head's bias has shape {list(options.bias.shape)}, its weight has {len(head)} rows: "
            "cut both for the same rows"
        )
    logits = accumulated(rows @ head.t()) if out is None else _product(rows, head, out)
    if options.bias is not None:
        logits = torch.add(logits, options.bias, out=out)
    if options.scale != 1:
        logits = torch.mul(logits, options.scale, out=out)
    if options.soft_cap is not None:
        bounded = torch.tanh(torch.div(logits, options.soft_cap, out=out), out=out)
        logits = torch.mul(bounded, options.soft_cap, out=out)
    return logits


@torch.no_grad()
def _product(rows: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """rows·headᵀ, where the precision of sums is another one by slabs of the head."""
    if rows.dtype == out.dtype:
        return torch.mm(rows, head.t(), out=out)
    for slab in slabs(len(head), len(rows) * rows.element_size()):
        out[:, slab] = rows @ head[slab].t()
    return out


def logits_of_selected(rows: Tensor, head: Tensor, selected: Tensor, options: HeadOptions, out: Tensor) -> Tensor:
    """`logits_of` some rows of the head, [selected] int64, in `out` [rows, selected], without a copy of all of them."""
    for slab in slabs(len(selected), head.shape[1] * head.element_size()):
        part = selected[slab]
        out[:, slab] = logits_of(rows, head.index_select(0, part), options.of_rows(part))
    return out


def product_gradient(logits_grad: Tensor, logits: Tensor, options: HeadOptions = PLAIN) -> Tensor:
    """The gradient at hidden·weightᵀ + bias, from that at the logits of `logits_of`: both [rows, V/tp]; no collective.

    With it, g, the gradients of rows, head and bias are g·head, to be summed over tp, gᵀ·rows, and the sum of g over
    the rows. For a plain head it is logits_grad itself.
    """
    if options.soft_cap is not None:
        logits_grad = logits_grad * (1 - (logits / options.soft_cap).square())
    return logits_grad if options.scale == 1 else logits_grad * options.scale


def cut_options(options: HeadOptions, pair: ShardedPair, teacher_group: dist.ProcessGroup | None = None) -> HeadOptions:
    """The options of the teacher head's rows that this rank of the student's tp group owns, as `cut_head` cuts them.

    Collectives: those of `cut_head` where there is a bias.
    """
    if options.bias is None:
        return options
    return replace(options, bias=cut_head(options.bias[:, None], pair, teacher_group).squeeze(1))
