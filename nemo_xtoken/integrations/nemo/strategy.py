"""NeMo's strategy on CPU."""

from __future__ import annotations

from typing import Any

from nemo import lightning as nl

from nemo_xtoken.integrations.nemo import cpu_device


class CpuMegatronStrategy(nl.MegatronStrategy):
    """MegatronStrategy over gloo, for `nl.Trainer(accelerator="cpu")`. To choose it is to choose `device="cpu"`.

    It has no Megatron timers. Making one redirects CUDA calls to the CPU for the rest of the process, see `cpu_device`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cpu_device.install()
        super().__init__(*args, process_group_backend="gloo", **kwargs)
        # NeMo's progress printer gathers Megatron's timers from all ranks, but prints on rank 0 alone: with gloo that
        # rank waits for ever.
        self.timers = None
