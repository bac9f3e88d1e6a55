"""The mask of packed sequences: a token sees the tokens before it in its own document."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.integrations.megatron.facts import has_transformer_engine
from nemo_xtoken.parallel import context_positions


def document_mask(position_ids: Tensor, cp_group: dist.ProcessGroup | None = None) -> Tensor | None:
    """True where attention is not allowed: later positions and other documents.

    Args:
        position_ids: [b, s] int64 of whole sequences; a position of 0 starts a document.
        cp_group: the ranks that a sequence is cut over.

    Returns:
        [b, 1, s/cp, s] bool: this rank's positions in the order of `context_positions` against those of all cp ranks in
        rank order. Without cp None when every row is one document: then the causal mask of megatron-core's own
        attention is the same. Transformer Engine's, which serves CUDA where it is installed, needs it in any case.
    """
    cp_rank, cp_size = (0, 1) if cp_group is None else (cp_group.rank(), cp_group.size())
    documents = (position_ids == 0).cumsum(dim=1)
    one_document = bool((documents == documents[:, :1]).all())
    if one_document and cp_size == 1 and not (position_ids.is_cuda and has_transformer_engine()):
        return None
    of_ranks = [
        context_positions(position_ids.shape[1], rank, cp_size).to(position_ids.device) for rank in range(cp_size)
    ]
    own, all_ranks = of_ranks[cp_rank], torch.cat(of_ranks)
    later = all_ranks[None, :] > own[:, None]
    elsewhere = documents[:, own, None] != documents[:, None, all_ranks]
    return (later | elsewhere)[:, None]
