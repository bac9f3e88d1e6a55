"""Training and evaluation on megatron-core. Importing this imports neither megatron-core nor a device layer."""

from nemo_xtoken.integrations.megatron.evaluate import evaluate
from nemo_xtoken.integrations.megatron.facts import megatron_facts
from nemo_xtoken.integrations.megatron.launcher import launch

__all__ = ["evaluate", "launch", "megatron_facts"]
