"""From a ConfigContainer to a distillation that runs."""

# pyright: reportMissingImports=false
from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron.bridge.training.callbacks import Callback
from megatron.bridge.training.config import ConfigContainer, DataloaderConfig
from megatron.bridge.training.pretrain import pretrain as bridge_pretrain

from nemo_xtoken.config import BalanceConfig, DataConfig, LossConfig
from nemo_xtoken.integrations.bridge.callbacks import BalanceCallback
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.dataset import AlignedData
from nemo_xtoken.integrations.bridge.settings import settle
from nemo_xtoken.integrations.bridge.step import DistillationStep


def extend(
    config: ConfigContainer,
    teachers: Sequence[BridgeTeacher],
    data: DataConfig,
    loss: LossConfig | None = None,
    balance: BalanceConfig | None = None,
) -> DistillationContainer:
    """A ConfigContainer as a distillation; what it says of the student, the optimizer and the job stays as it is.

    teachers  none is the control: cross-entropy alone
    data      prepared data
    loss      of every teacher, in the place of their own
    """
    chosen = tuple(teachers if loss is None else (dataclasses.replace(teacher, loss=loss) for teacher in teachers))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    old = {field.name: getattr(config.dataset, field.name) for field in dataclasses.fields(DataloaderConfig)}
    values["dataset"] = AlignedData(data=data, **{**old, "dataloader_type": "single"})
    values |= {"teachers": chosen, "balance": balance or BalanceConfig()}
    extended = DistillationContainer(**values)
    settle(extended)
    return extended


def pretrain(config: DistillationContainer, callbacks: Sequence[Callback] = ()) -> None:
    """Bridge's `pretrain` with the forward step and the callback that a distillation needs, and these after them."""
    step = DistillationStep(config)
    bridge_pretrain(config, step, callbacks=[BalanceCallback(step), *callbacks])
