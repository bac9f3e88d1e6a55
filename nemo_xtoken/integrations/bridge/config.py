"""A ConfigContainer that distils: Bridge's own, with teachers and the balance of the losses."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron.bridge.training.config import ConfigContainer

from nemo_xtoken.config import BalanceConfig, Fp8Config, LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.fp8_backend import check_engine
from nemo_xtoken.teacher_config import check_teacher, check_teacher_fp8


@dataclass(frozen=True, kw_only=True)
class BridgeTeacher:
    """A frozen teacher, on the ranks of the student's last pipeline stage.

    model       a Hugging Face directory or name, imported by Bridge; or
    provider    a provider of Bridge's, whose hooks bring its weights
    options     fields of the provider to set: a layout option or a dtype of the teacher's own
    projection  the file of W for this pair of tokenizers; null builds it into the checkpoint directory, once
    weight      alpha: L_KD is the sum of weight·L_KD of each teacher
    prepared_as the name of its tokens in the prepared data; null: its own name, and where there is one only, that
    learn_projection  P-KL: W is trained too, from what the file has; checkpoints hold it, and an export writes its file
    projection_lr     its learning rate, constant (Adam, no weight decay, no clipping)
    fp8         how its layers multiply, whatever the student's do; null: in the student's precision, without FP8
    """

    name: str = "teacher"
    model: str | None = None
    provider: Any = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    projection: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    weight: float = 1.0
    prepared_as: str | None = None
    learn_projection: bool = False
    projection_lr: float = 1e-2
    fp8: Fp8Config | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.provider is None):
            raise ConfigError(f"teacher {self.name!r}: expected a model or a provider, one of the two")
        check_teacher(self.name, self.weight, self.loss, self.learn_projection, self.projection_lr)
        check_teacher_fp8(self.name, self.fp8)
        check_engine(f"teacher {self.name!r}", self.fp8)


@dataclass(kw_only=True)
class DistillationContainer(ConfigContainer):
    """Everything that decides a distillation with Bridge.

    teachers  none means cross-entropy alone
    balance   how the losses become one
    """

    teachers: tuple[BridgeTeacher, ...] = ()
    balance: BalanceConfig = field(default_factory=BalanceConfig)
