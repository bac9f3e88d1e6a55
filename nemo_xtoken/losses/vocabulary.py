"""Sums over the vocabulary, the one place where a formula meets the question of who holds which columns.

Every loss in this room is written for the columns it is given and returns its *partial* value: the sum over those
columns. With the whole vocabulary in hand that is the loss. With a shard of it, `Vocabulary` adds up what the softmax
needs from the other shards, and the partial values of all shards add up to the loss: no formula is written twice.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Vocabulary(Protocol):
    """Who holds the columns of a row."""

    def complete(self, partial: Tensor) -> Tensor:
        """Differentiable sum of the partial values of all holders, same shape."""
        ...

    def maximum(self, x: Tensor) -> Tensor:
        """Detached maximum of x [..., local columns] over the whole vocabulary, [...]."""
        ...

    def largest(self, x: Tensor, count: int) -> Tensor:
        """The `count` largest of each row of x [c, local columns] over the whole vocabulary, descending.

        Differentiable. Rows are dealt out among the holders, [its rows, count], so a sum over them is a partial value.
        x must not be negative, and `count` at most the number of columns of the whole vocabulary.
        """
        ...

    def kth_largest(self, x: Tensor, k: int) -> Tensor:
        """Detached k-th largest of each row of x [c, local columns] over the whole vocabulary, [c]; -inf if fewer."""
        ...


class WholeVocabulary:
    """All columns are here."""

    def complete(self, partial: Tensor) -> Tensor:
        """The value itself."""
        return partial

    def maximum(self, x: Tensor) -> Tensor:
        """Detached maximum of the last dimension."""
        return local_maximum(x)

    def largest(self, x: Tensor, count: int) -> Tensor:
        """The largest of each row, descending."""
        return x.topk(count, dim=-1).values

    def kth_largest(self, x: Tensor, k: int) -> Tensor:
        """Detached k-th largest of each row."""
        return local_largest(x, k)[:, -1]


def local_maximum(x: Tensor) -> Tensor:
    """Detached maximum over the columns that are here, -inf where there is none: [..., local] -> [...]."""
    return x.detach().amax(-1) if x.shape[-1] else x.new_full(x.shape[:-1], -torch.inf)


def local_largest(x: Tensor, count: int) -> Tensor:
    """Detached largest values of each row that are here, descending, filled up with -inf: [c, local] -> [c, count]."""
    values = x.detach().topk(min(count, x.shape[-1]), dim=-1).values
    return torch.nn.functional.pad(values, (0, count - values.shape[-1]), value=-torch.inf)


def total(x: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Sum of x [..., local columns] over the whole vocabulary, [...]."""
    return vocabulary.complete(x.sum(-1))


def log_sum_exp(x: Tensor, vocabulary: Vocabulary) -> Tensor:
    """log of the sum of exp(x) over the whole vocabulary: x [..., local columns] -> [...]."""
    local = x.logsumexp(-1)
    maximum = vocabulary.maximum(local.unsqueeze(-1))
    return maximum + vocabulary.complete((local - maximum).exp()).log()


def log_softmax(logits: Tensor, vocabulary: Vocabulary, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the local columns, normalised over the whole vocabulary: [rows, local] -> [rows, local]."""
    scaled = logits if temperature == 1 else logits / temperature
    if isinstance(vocabulary, WholeVocabulary):
        return scaled.log_softmax(-1)
    return scaled - log_sum_exp(scaled, vocabulary).unsqueeze(-1)
