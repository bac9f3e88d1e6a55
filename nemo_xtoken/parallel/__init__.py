"""Every collective of the loss: vocabulary shards, heads block by block, W across shards."""

from nemo_xtoken.parallel.context import context_positions
from nemo_xtoken.parallel.distillation import distillation_loss
from nemo_xtoken.parallel.heads import cut_head
from nemo_xtoken.parallel.logits import HeadOptions, cut_options
from nemo_xtoken.parallel.pair import ShardedPair, shard_pair
from nemo_xtoken.parallel.partition import ShardedPartition, shard_partition
from nemo_xtoken.parallel.projection import ShardedProjection, shard_projection

__all__ = [
    "HeadOptions",
    "ShardedPair",
    "ShardedPartition",
    "ShardedProjection",
    "context_positions",
    "cut_head",
    "cut_options",
    "distillation_loss",
    "shard_pair",
    "shard_partition",
    "shard_projection",
]
