"""A ConfigContainer that distils: Bridge's own, with teachers and the balance of the losses."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.training.config import ConfigContainer

from nemo_xtoken.config import BalanceConfig, LossConfig
from nemo_xtoken.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BridgeTeacher:
    """A frozen teacher, on the ranks of the student's last pipeline stage.

    model       a Hugging Face directory or name, imported by Bridge; or
    provider    a provider of Bridge's, whose hooks bring its weights
    options     fields of the provider to set: a layout option or a dtype of the teacher's own
    projection  the file of W for this pair of tokenizers; null builds it into the checkpoint directory, once
    weight      alpha: the factor of its part in L_KD
    """

    name: str = "teacher"
    model: str | None = None
    provider: Any = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    projection: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.model is None) == (self.provider is None):
            raise ConfigError(f"teacher {self.name!r}: expected a model or a provider, one of the two")
        if self.weight <= 0:
            raise ConfigError(f"teacher {self.name!r}: weight must be positive, got {self.weight}")


@dataclass(kw_only=True)
class DistillationContainer(ConfigContainer):
    """Everything that decides a distillation with Bridge.

    teachers  none means cross-entropy alone
    balance   how the losses become one
    """

    teachers: tuple[BridgeTeacher, ...] = ()
    balance: BalanceConfig = field(default_factory=BalanceConfig)
