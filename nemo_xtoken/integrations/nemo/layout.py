"""The grid of ranks that NeMo's strategy has set up, as the rest of the package sees it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.cpu_device import CPU, installed
from nemo_xtoken.integrations.megatron.layout import Layout


def layout_of(strategy: Any) -> Layout:
    """The layout of a MegatronStrategy whose process groups are there. Raises ConfigError for what is not supported."""
    check_strategy(strategy)
    tp_size = strategy.tensor_model_parallel_size
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp_size,
        pipeline_model_parallel_size=strategy.pipeline_model_parallel_size,
        context_parallel_size=strategy.context_parallel_size,
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        sequence_parallel=strategy.sequence_parallel and tp_size > 1,
    )
    device = CPU if installed() else torch.device("cuda", torch.cuda.current_device())
    return Layout(parallel, device, ProcessGroupCollection.use_mpu_process_groups())


def check_trainer(trainer: Any) -> None:
    """Raises ConfigError, with the reason, for options of the trainer that distillation can't work with."""
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: NeMo's strategy takes a whole step of the "
            "optimizer at each batch, and the micro batches of a step follow from global_batch_size; set it to 1"
        )


def check_strategy(strategy: Any) -> None:
    """Raises ConfigError, with the reason, for options of MegatronStrategy that distillation can't work with."""
    if strategy.virtual_pipeline_model_parallel_size not in (None, 1):
        raise ConfigError(
            "virtual_pipeline_model_parallel_size: NeMo makes a Lightning module for each virtual stage, and the "
            "teacher and the balance of the losses live in the first one; set it to None"
        )
    if strategy.expert_model_parallel_size > 1:
        raise ConfigError("expert_model_parallel_size > 1: a teacher has no expert groups of its own here; set it to 1")
    ddp = strategy.ddp_config
    if ddp is None:
        raise ConfigError('MegatronStrategy(ddp="pytorch") averages gradients over ranks; use ddp="megatron"')
    if ddp.average_in_collective:
        raise ConfigError(
            "ddp.average_in_collective averages gradients over ranks, but the loss is divided by counts of the whole "
            "global batch; set it to False"
        )
    if getattr(ddp, "use_megatron_fsdp", False) or getattr(ddp, "use_custom_fsdp", False):
        raise ConfigError("Megatron FSDP cuts the head that the loss works on; use DDP, with the distributed optimizer")
