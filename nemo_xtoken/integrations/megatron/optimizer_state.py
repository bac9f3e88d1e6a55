"""Loading an optimizer's state, also where Megatron's distributed optimizer works with torch's AdamW.

Without apex and Transformer Engine, megatron-core 0.16.1 can save that pair but not load it. AdamW has no state before
its first step; it counts steps by parameter, which the distributed optimizer takes for weights to be loaded, and it is
given one counter for all of them, which each parameter would then count up.
"""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from nemo_xtoken.integrations.megatron.facts import TORCH_OPTIMIZER, which_optimizer


def make_room(optimizer: MegatronOptimizer) -> None:
    """Let the optimizer have a state to load into, and say what it wants to load. Changes the model's weights."""
    distributed = _distributed_adamw(optimizer)
    if distributed is not None:
        distributed._init_optimizer_states_with_dummy_values()


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load what `sharded_state_dict` asked for."""
    distributed = _distributed_adamw(optimizer)
    if distributed is None:
        optimizer.load_state_dict(state)
        return
    of_parameters = state.pop("param_state")
    optimizer.load_state_dict(state)
    states: Any = distributed.optimizer.state.values()
    steps = [of_parameter.pop("step") for of_parameter in states]
    distributed.load_parameter_state_from_fully_reshardable(of_parameters)
    for of_parameter, step in zip(states, steps, strict=True):
        of_parameter["step"] = step.clone()


def _distributed_adamw(optimizer: Any) -> DistributedOptimizer | None:
    (only,) = getattr(optimizer, "chained_optimizers", [optimizer])
    return only if isinstance(only, DistributedOptimizer) and which_optimizer() == TORCH_OPTIMIZER else None
