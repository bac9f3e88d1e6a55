"""What a NeMo student is distilled from, and how."""

from dataclasses import dataclass, field
from typing import Any, Optional

from nemo.collections.llm.gpt.model.base import GPTConfig

from nemo_xtoken.config import BalanceConfig, Fp8Config, LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.fp8_backend import check_engine
from nemo_xtoken.integrations.nemo.whole_io import WholeIO
from nemo_xtoken.teacher_config import check_teacher, check_teacher_fp8


@dataclass
class NemoTeacher(WholeIO):
    """A frozen teacher on the student's ranks.

    config      any NeMo GPT config (Qwen3Config4B, ...); its layout and precision are taken from the student's. None:
                that of the checkpoint, if it is one of NeMo's
    checkpoint  a NeMo checkpoint (`llm.import_ckpt`), or a run directory of `nemo-xtoken train`; None: random weights
                from `seed`, for trying things out
    projection  the file of W for this pair of tokenizers; None builds it below the trainer's root directory, once
    loss        how both are compared
    weight      alpha: L_KD is the sum of weight·L_KD of each teacher
    prepared_as the name of its tokens in the prepared data; None: its own name, and where there is one only, that
    learn_projection  P-KL: W is trained too, from what the file has; a checkpoint holds it. See `ProjectionSnapshots`
    projection_lr     its learning rate, constant (Adam, no weight decay, no clipping)
    fp8         how its layers multiply, whatever the student's do; None: in the student's precision, without FP8
    """

    config: Optional[GPTConfig] = None
    checkpoint: Optional[str] = None
    projection: Optional[str] = None
    loss: LossConfig = field(default_factory=LossConfig)
    name: str = "teacher"
    weight: float = 1.0
    prepared_as: Optional[str] = None
    learn_projection: bool = False
    projection_lr: float = 1e-2
    fp8: Optional[Fp8Config] = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.config is None and self.checkpoint is None:
            raise ConfigError(f"teacher {self.name!r}: expected a config or a checkpoint with one")
        check_teacher(self.name, self.weight, self.loss, self.learn_projection, self.projection_lr)
        check_teacher_fp8(self.name, self.fp8)
        check_engine(f"teacher {self.name!r}", self.fp8)


@dataclass
class DistillationConfig(WholeIO):
    """Teachers of a student, and how the losses are balanced.

    teachers              none means cross-entropy alone
    huggingface           the Hugging Face model that the student was made from, for its config and tokenizer when the
                          student is exported
    initial_weights_seed  not None: a student from scratch, with weights that depend on this seed and not on the layout
    """

    teachers: list[NemoTeacher] = field(default_factory=list)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    initial_weights_seed: Optional[int] = None
    huggingface: Optional[str] = None

    def __post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise ConfigError(f"teachers need names of their own, got {', '.join(names)}")

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        """How the student is compared with each teacher."""
        return tuple(teacher.loss for teacher in self.teachers)


def set_with_io(config: Any, name: str, value: Any) -> None:
    """Set a field, also in what `io_dump` writes."""
    setattr(config, name, value)
    if hasattr(config, "__io__"):
        setattr(config.__io__, name, value)
