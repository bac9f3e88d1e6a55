"""Where this rank stands in Bridge's layout, in our words."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.integrations.bridge import cpu_device
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.megatron.layout import Layout


def device() -> torch.device:
    """Where this rank's tensors live."""
    return torch.device("cpu") if cpu_device.installed() else torch.device("cuda", torch.cuda.current_device())


def layout_of(config: DistillationContainer) -> Layout:
    """The layout of a job whose groups Bridge has made."""
    model = config.model
    groups = ProcessGroupCollection.use_mpu_process_groups()
    parallel = ParallelConfig(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        context_parallel_size=model.context_parallel_size,
        data_parallel_size=groups.dp.size(),
        sequence_parallel=model.sequence_parallel,
        use_distributed_optimizer=config.ddp.use_distributed_optimizer,
    )
    return Layout(parallel, device(), groups)
