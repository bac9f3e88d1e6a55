"""Every collective of the loss: vocabulary shards, heads block by block, W across shards."""

from nemo_xtoken.parallel.distillation import distillation_loss
from nemo_xtoken.parallel.projection import ShardedProjection, cut_head, shard_projection

__all__ = ["ShardedProjection", "cut_head", "distillation_loss", "shard_projection"]
