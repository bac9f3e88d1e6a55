"""How a teacher's answer to a token is stored: its hidden state in some precision, or some of its probabilities.

bf16, fp32  the hidden state
fp8         the hidden state as e4m3, in blocks of 128 numbers with a float32 scale each: amax / 448
top_k       ids and log-probabilities (float16) of the likeliest tokens, the one that really follows among them
sampled     ids that were drawn from the teacher's distribution, with replacement, and how often each: count / draws
            is unbiased for its probability (random sampling of arXiv 2503.16870, with its proposal temperature 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_xtoken.errors import require
from nemo_xtoken.types import SparseLogits

StoredAs = Literal["bf16", "fp32", "fp8", "top_k", "sampled"]
FP8_BLOCK = 128
FP8_LARGEST = 448.0
NO_ENTRY = -1


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What is stored of each token.

    count  top_k: tokens kept; sampled: draws. 0 for hidden states
    """

    stored_as: StoredAs = "bf16"
    count: int = 0

    def __post_init__(self) -> None:
        if not self.is_sparse:
            require(self.count == 0, f"count is for top_k and sampled, got {self.count} with {self.stored_as}")
            return
        largest = torch.iinfo(torch.int16).max
        require(
            0 < self.count <= largest,
            f"{self.stored_as} needs a count of tokens from 1 to {largest}, got {self.count}",
        )

    @property
    def is_sparse(self) -> bool:
        """Whether probabilities are stored and no hidden states."""
        return self.stored_as in ("top_k", "sampled")


def encode_hidden(hidden: Tensor, storage: Storage) -> dict[str, Tensor]:
    """[rows, h] hidden states -> the tensors of a shard."""
    if storage.stored_as == "fp8":
        return _encode_fp8(hidden)
    return {"hidden": hidden.to(torch.bfloat16 if storage.stored_as == "bf16" else torch.float32)}


def decode_hidden(tensors: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Hidden states [rows, h] of these rows of a shard, in the precision they were stored in, fp8 as float32."""
    hidden = tensors["hidden"]
    if hidden.dtype != torch.float8_e4m3fn:
        return hidden.index_select(0, rows)
    picked = hidden.view(torch.uint8).index_select(0, rows).view(torch.float8_e4m3fn).float()
    scales = tensors["scales"].index_select(0, rows).repeat_interleave(FP8_BLOCK, dim=1)
    return picked * scales[:, : picked.shape[1]]


def _encode_fp8(hidden: Tensor) -> dict[str, Tensor]:
    rows, width = hidden.shape
    blocks = -(-width // FP8_BLOCK)
    padded = torch.nn.functional.pad(hidden.float(), (0, blocks * FP8_BLOCK - width)).view(rows, blocks, FP8_BLOCK)
    scales = (padded.abs().amax(-1) / FP8_LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (padded / scales[..., None]).clamp(-FP8_LARGEST, FP8_LARGEST).view(rows, -1)[:, :width]
    return {"hidden": scaled.to(torch.float8_e4m3fn), "scales": scales}


def choose_top_k(log_probs: Tensor, labels: Tensor, count: int) -> SparseLogits:
    """The `count` likeliest tokens of each row: log_probs [rows, V], labels [rows], negative for none.

    A label that is not among them takes the place of the last one, so that its probability is known.
    """
    best = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    ids, values = best.indices, best.values
    is_missing = (labels >= 0) & ~(ids == labels[:, None]).any(-1)
    ids[is_missing, -1] = labels[is_missing]
    values[is_missing, -1] = log_probs[is_missing, labels[is_missing]]
    return SparseLogits(ids, values, log_probs.shape[-1])


def draw(log_probs: Tensor, count: int, generator: torch.Generator) -> SparseLogits:
    """`count` draws from each row's distribution [rows, V], equal ones together: E[count / draws] = probability."""
    draws = torch.multinomial(log_probs.exp(), count, replacement=True, generator=generator).sort(-1).values
    is_first = torch.ones_like(draws, dtype=torch.bool)
    is_first[:, 1:] = draws[:, 1:] != draws[:, :-1]
    number = is_first.cumsum(-1) - 1  # of each draw's token among the row's
    counts = torch.zeros_like(draws).scatter_add_(1, number, torch.ones_like(draws))
    ids = torch.full_like(draws, NO_ENTRY).scatter_(1, number, draws)
    return SparseLogits(ids, (counts / count).log(), log_probs.shape[-1])


def encode_sparse(sparse: SparseLogits, storage: Storage) -> dict[str, Tensor]:
    """Entries of all rows one after another; row r has entries offsets[r] .. offsets[r + 1]."""
    kept = sparse.ids != NO_ENTRY
    offsets = torch.zeros(len(kept) + 1, dtype=torch.int64)
    offsets[1:] = kept.sum(-1).cumsum(0)
    ids = sparse.ids[kept].to(torch.int32)
    if storage.stored_as == "sampled":
        counts = (sparse.log_probs[kept].exp() * storage.count).round()
        return {"offsets": offsets, "ids": ids, "counts": counts.to(torch.int16)}
    return {"offsets": offsets, "ids": ids, "log_probs": sparse.log_probs[kept].to(torch.float16)}


def decode_sparse(tensors: Mapping[str, Tensor], rows: Tensor, storage: Storage, vocab_size: int) -> SparseLogits:
    """The entries [rows, count] of these rows of a shard."""
    offsets = tensors["offsets"]
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    steps = torch.arange(storage.count)
    is_there = steps < lengths[:, None]
    at = torch.where(is_there, starts[:, None] + steps, 0)
    if not len(tensors["ids"]):
        empty = torch.full_like(at, NO_ENTRY)
        return SparseLogits(empty, empty.float(), vocab_size)
    ids = torch.where(is_there, tensors["ids"][at].long(), NO_ENTRY)
    values = tensors["log_probs"][at].float() if "log_probs" in tensors else _log_share(tensors["counts"][at], storage)
    return SparseLogits(ids, torch.where(is_there, values, 0.0), vocab_size)


def _log_share(counts: Tensor, storage: Storage) -> Tensor:
    return (counts.float() / storage.count).log()


def bytes_per_token(storage: Storage, hidden_size: int, entries: float | None = None) -> float:
    """Bytes on disk of one token; `entries` of a sparse row, by default as many as there can be."""
    if storage.is_sparse:
        entry = 6  # int32 id, float16 or int16
        return 8 + entry * (storage.count if entries is None else entries)
    if storage.stored_as == "fp8":
        return hidden_size + 4 * -(-hidden_size // FP8_BLOCK)
    return hidden_size * (2 if storage.stored_as == "bf16" else 4)
