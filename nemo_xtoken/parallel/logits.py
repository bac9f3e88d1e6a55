"""From hidden states to logits: the head's matrix product, and what some models do after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.kernels.precision import accumulated
from nemo_xtoken.parallel.heads import cut_head
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


def logits_of(rows: Tensor, head: Tensor, options: HeadOptions = PLAIN) -> Tensor:
    """Logits of hidden states on this rank's columns, in the precision of sums; no collective.

    rows [rows, h], head [V/tp, h] -> [rows, V/tp]. Raises ConfigError for a bias of another length than the head.
    """
    logits = accumulated(rows @ head.t())
    if options.bias is not None:
        if options.bias.shape != head.shape[:1]:
            raise ConfigError(
                f"the head's bias has shape {list(options.bias.shape)}, its weight has {len(head)} rows: "
                "cut both for the same rows"
            )
        logits = logits + options.bias
    if options.scale != 1:
        logits = logits * options.scale
    if options.soft_cap is not None:
        logits = options.soft_cap * torch.tanh(logits / options.soft_cap)
    return logits


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
