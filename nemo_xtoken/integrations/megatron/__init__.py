"""Training, evaluation and storing of teachers on megatron-core, which importing this does not import."""

from nemo_xtoken.integrations.megatron.caching import CacheJob, Filled, fill_caches
from nemo_xtoken.integrations.megatron.evaluate import evaluate
from nemo_xtoken.integrations.megatron.facts import megatron_facts
from nemo_xtoken.integrations.megatron.launcher import launch

__all__ = ["CacheJob", "Filled", "evaluate", "fill_caches", "launch", "megatron_facts"]
