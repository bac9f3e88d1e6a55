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
    """Who holds the columns: `total` and `maximum` reduce the last dimension over all holders."""

    def total(self, x: Tensor) -> Tensor:
        """Differentiable sum of x [..., local columns] over the whole vocabulary, [...]."""
        ...

    def maximum(self, x: Tensor) -> Tensor:
        """Detached maximum of x [..., local columns] over the whole vocabulary, [...]."""
        ...


class WholeVocabulary:
    """All columns are here."""

    def total(self, x: Tensor) -> Tensor:
        """Sum of the last dimension."""
        return x.sum(-1)

    def maximum(self, x: Tensor) -> Tensor:
        """Detached maximum of the last dimension."""
        return local_maximum(x)


def local_maximum(x: Tensor) -> Tensor:
    """Detached maximum over the columns that are here, -inf where there is none: [..., local] -> [...]."""
    return x.detach().amax(-1) if x.shape[-1] else x.new_full(x.shape[:-1], -torch.inf)


def log_sum_exp(x: Tensor, vocabulary: Vocabulary) -> Tensor:
    """log of the sum of exp(x) over the whole vocabulary: x [..., local columns] -> [...]."""
    maximum = vocabulary.maximum(x)
    return maximum + vocabulary.total((x - maximum.unsqueeze(-1)).exp()).log()


def log_softmax(logits: Tensor, vocabulary: Vocabulary, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the local columns, normalised over the whole vocabulary: [rows, local] -> [rows, local]."""
    scaled = logits / temperature
    return scaled - log_sum_exp(scaled, vocabulary).unsqueeze(-1)
