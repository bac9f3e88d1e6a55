"""Greedy continuation of prompts, batched, without a cache: for evaluation, not for serving."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken.integrations.megatron.attention_mask import document_mask
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight
from nemo_xtoken.parallel.logits import PLAIN, HeadOptions, logits_of
from nemo_xtoken.parallel.vocabulary import RowRange


@torch.no_grad()
def generate(
    model: GPTModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int], vocab_size: int
) -> list[list[int]]:
    """The most probable next token again and again, until one of `stop_ids` (which is left out) or `max_new_tokens`.

    Prompts of at least one token each; the same result on every tp rank. Two all-reduces over tp for each token.
    """
    device = head_weight(model).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max()) + max_new_tokens
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        following = _next_tokens(model, tokens, lengths, vocab_size)
        running &= ~torch.isin(following, stops)
        if not bool(running.any()):
            break
        for row in running.nonzero().flatten().tolist():
            answers[row].append(int(following[row]))
            tokens[row, lengths[row]] = following[row]
        lengths += running.long()
    return answers


def _next_tokens(model: GPTModel, tokens: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """The most probable token after the first `lengths` tokens of each row, [b]; what lies behind them is not seen."""
    seen = tokens[:, : int(lengths.max())]
    positions = torch.arange(seen.shape[1], device=tokens.device).expand_as(seen).contiguous()
    hidden = model(seen.contiguous(), positions, document_mask(positions))
    last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
    return vocab_parallel_argmax(last, head_weight(model), model.pg_collection.tp, vocab_size, head_options(model))


def vocab_parallel_argmax(
    hidden: Tensor, head: Tensor, tp_group: dist.ProcessGroup, vocab_size: int, options: HeadOptions = PLAIN
) -> Tensor:
    """argmax over the vocabulary of the logits, lowest id at a tie: [rows, h] and [V/tp, h] -> [rows] int64."""
    own = RowRange.of_head(head, tp_group)[tp_group.rank()].clip(vocab_size)
    logits = logits_of(hidden, head[: len(own)], options.of_rows(slice(len(own))))
    best = logits.new_full((len(hidden),), -torch.inf) if len(own) == 0 else logits.amax(-1)
    maximum = best.clone()
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=tp_group)
    ids = torch.full((len(hidden),), vocab_size, dtype=torch.int64, device=hidden.device)
    if len(own):
        ids = torch.where(best == maximum, logits.argmax(-1) + own.start, ids)
    dist.all_reduce(ids, dist.ReduceOp.MIN, group=tp_group)
    return ids
