"""What a NeMo student is distilled from, and how."""

from dataclasses import dataclass, field

from nemo.collections.llm.gpt.model.base import GPTConfig
from nemo.lightning import io

from nemo_xtoken.config import BalanceConfig, LossConfig, check_teacher
from nemo_xtoken.errors import ConfigError


@dataclass
class NemoTeacher(io.IOMixin):
    """A frozen teacher on the student's ranks.

    config      any NeMo GPT config (Qwen3Config4B, ...); its layout and precision are taken from the student's
    checkpoint  a NeMo checkpoint (`llm.import_ckpt`), or a run directory of `nemo-xtoken train`; None: random weights
                from `seed`, for trying things out
    projection  the file of W for this pair of tokenizers; None builds it below the trainer's root directory, once
    loss        how both are compared
    weight      alpha: L_KD is the sum of weight·L_KD of each teacher
    prepared_as the name of its tokens in the prepared data; None: its own name, and where there is one only, that
    learn_projection  P-KL: W is trained too, from what the file has; a checkpoint holds it. See `ProjectionSnapshots`
    projection_lr     its learning rate, constant (Adam, no weight decay, no clipping)
    """

    config: GPTConfig
    checkpoint: str | None = None
    projection: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    name: str = "teacher"
    weight: float = 1.0
    prepared_as: str | None = None
    learn_projection: bool = False
    projection_lr: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        check_teacher(self.name, self.weight, self.loss, self.learn_projection, self.projection_lr)


@dataclass
class DistillationConfig(io.IOMixin):
    """Teachers of a student, and how the losses are balanced.

    teachers              none means cross-entropy alone
    initial_weights_seed  not None: a student from scratch, with weights that depend on this seed and not on the layout
    """

    teachers: list[NemoTeacher] = field(default_factory=list)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    initial_weights_seed: int | None = None

    def __post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise ConfigError(f"teachers need names of their own, got {', '.join(names)}")

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        """How the student is compared with each teacher."""
        return tuple(teacher.loss for teacher in self.teachers)
