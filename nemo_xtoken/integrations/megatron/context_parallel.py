"""Context parallelism of a model: a rank runs its own rows of every sequence, and attends to the keys of all ranks.

Keys and values are gathered, not passed round in a ring: with grouped queries they are small, and a mask then says the
same of packed documents as it does without context parallelism, which Transformer Engine's rings do not offer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_xtoken.integrations.megatron.attention_mask import document_mask
from nemo_xtoken.parallel import context_positions


def model_inputs(
    tokens: Tensor, position_ids: Tensor, cp_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a model is called with: tokens and position ids [b, s/cp] of this rank, and its mask.

    tokens, position_ids: [b, s] int64, whole sequences, the same on every cp rank.
    Raises ConfigError where cp can't cut them.
    """
    own = context_positions(tokens.shape[1], cp_group.rank(), cp_group.size()).to(tokens.device)
    return tokens[:, own], position_ids[:, own], document_mask(position_ids, cp_group)


class ContextParallelAttention(torch.nn.Module):
    """Scaled dot-product attention over sequences that are cut over cp ranks, as a layer spec's `core_attention`.

    Sharding: queries, keys and values [s/cp, b, heads/tp, d] of this rank's positions, in the order of
    `context_positions`; so is the result. Collectives: one all-gather of keys and values over cp, and a reduce-scatter
    backward.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        *,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__()
        self.softmax_scale, self.cp_group = softmax_scale, pg_collection.cp

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """[s/cp, b, heads/tp * d]; attention_mask [b, 1, s/cp, s] of `document_mask`, True where not allowed."""
        keys_and_values = gather_from_sequence_parallel_region(torch.stack([key, value], dim=1), group=self.cp_group)
        queries_per_key = query.shape[2] // key.shape[2]
        key, value = keys_and_values.repeat_interleave(queries_per_key, dim=3).unbind(1)
        heads_first = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = scaled_dot_product_attention(*heads_first, attn_mask=~attention_mask, scale=self.softmax_scale)
        return context.permute(2, 0, 1, 3).flatten(2)
