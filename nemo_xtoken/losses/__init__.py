"""The losses as pure math on full logits in one process: the reference that everything sharded or fused is held to."""

from nemo_xtoken.losses.common_set import gold, hybrid_kl, strict_top_k, uld
from nemo_xtoken.losses.cross_entropy import cross_entropy
from nemo_xtoken.losses.projected_kl import projected_kl

__all__ = ["cross_entropy", "gold", "hybrid_kl", "projected_kl", "strict_top_k", "uld"]
