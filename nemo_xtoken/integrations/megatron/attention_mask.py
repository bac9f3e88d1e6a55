"""The mask of packed sequences: a token sees the tokens before it in its own document."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.integrations.megatron.facts import has_transformer_engine


def document_mask(position_ids: Tensor) -> Tensor | None:
    """True where attention is not allowed: later positions and other documents.

    Args:
        position_ids: [b, s] int64; a position of 0 starts a document.

    Returns:
        [b, 1, s, s] bool, or None when every row is one document: then the causal mask of megatron-core's own
        attention is the same. Transformer Engine's, which serves CUDA where it is installed, needs it in any case.
    """
    documents = (position_ids == 0).cumsum(dim=1)
    one_document = bool((documents == documents[:, :1]).all())
    if one_document and not (position_ids.is_cuda and has_transformer_engine()):
        return None
    length = position_ids.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).triu(diagonal=1)
    elsewhere = documents[:, :, None] != documents[:, None, :]
    return (later | elsewhere)[:, None]
