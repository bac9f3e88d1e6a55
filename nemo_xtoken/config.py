"""A whole run as frozen, keyword-only dataclasses, each checked when it is made; `config_io` reads them from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nemo_xtoken.errors import require, require_positive
from nemo_xtoken.fp8_config import Fp8Config
from nemo_xtoken.loss_config import Balance, BalanceConfig, Direction, Implementation, LossConfig, LossMode, Merge
from nemo_xtoken.model_config import ModelConfig, ParallelConfig
from nemo_xtoken.teacher_config import Offload, TeacherConfig, check_fp8

__all__ = [
    "Balance", "BalanceConfig", "BlendPart", "DataConfig", "Direction", "Fp8Config", "Implementation", "LossConfig",
    "LossMode", "Merge", "ModelConfig", "Offload", "OptimizerConfig", "ParallelConfig", "RunConfig", "TeacherConfig",
    "TeacherLength", "TrainConfig",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BlendPart:
    """Prepared data that is mixed with others. `weight` is its share of the samples, relative to theirs."""

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight > 0, f"data.blend: weight of {self.path} must be positive, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class TeacherLength:
    """The sequence length of one teacher of the prepared data, by its name there."""

    teacher: str
    sequence_length: int


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prepared data (`nemo-xtoken data prepare`) and how it is packed. Lengths in tokens.

    path   one directory of it
    blend  or several, mixed by weight
    teacher_sequence_length  of every teacher that teacher_lengths does not name. What is packed together fits into the
                             sequences of all teachers of the data, also of those that the run does without
    """

    path: str = ""
    student_sequence_length: int
    teacher_sequence_length: int
    teacher_lengths: tuple[TeacherLength, ...] = ()
    blend: tuple[BlendPart, ...] = ()
    validation_path: str | None = None
    seed: int = 1234
    exact_chunks_only: bool = True

    def __post_init__(self) -> None:
        require(
            bool(self.path) != bool(self.blend),
            f"expected data.path or data.blend, got {'both' if self.path else 'neither'}",
        )
        require(
            self.student_sequence_length > 1,
            f"student_sequence_length must be at least 2, got {self.student_sequence_length}",
        )
        require(
            self.teacher_sequence_length > 1,
            f"teacher_sequence_length must be at least 2, got {self.teacher_sequence_length}",
        )
        for entry in self.teacher_lengths:
            require(
                entry.sequence_length > 1,
                f"teacher_lengths: sequence_length of {entry.teacher} must be at least 2, got {entry.sequence_length}",
            )
        names = [entry.teacher for entry in self.teacher_lengths]
        require(len(set(names)) == len(names), f"teacher_lengths names a teacher twice: {', '.join(names)}")

    def teacher_length(self, name: str) -> int:
        """The sequence length of the teacher of this name in the prepared data."""
        own = {entry.teacher: entry.sequence_length for entry in self.teacher_lengths}
        return own.get(name, self.teacher_sequence_length)

    @property
    def parts(self) -> tuple[BlendPart, ...]:
        """What training reads: the blend, or `path` alone."""
        return self.blend or (BlendPart(path=self.path),)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and decay, megatron-core's, which takes apex's or TE's fused Adam where present."""

    lr: float
    min_lr: float = 0.0
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    lr_warmup_steps: int = 0
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr must be positive, got {self.lr}")
        require(0 <= self.min_lr <= self.lr, f"min_lr must lie between 0 and lr, got {self.min_lr}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, its batches and what it writes. Intervals in steps; 0: never, or only at the end.

    async_save    checkpoints are written by a process in the background while the training goes on, from a copy in main
                  memory. A signal, a checkpoint that is due and the end wait for the one before
    hang_seconds  a rank that is longer at one step, its validation and checkpoint included, or at starting, shows the
                  stacks of its threads and ends; 0: never
    """

    steps: int
    micro_batch_size: int
    global_batch_size: int
    seed: int = 1234
    bf16: bool = False
    log_interval: int = 1
    checkpoint_interval: int = 100
    keep_checkpoints: int = 2
    async_save: bool = False
    validation_interval: int = 0
    validation_batches: int = 8
    hang_seconds: float = 1800.0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "micro_batch_size", "global_batch_size")
        require_positive(self, "log_interval", "keep_checkpoints", "validation_batches")
        require(self.hang_seconds >= 0, f"hang_seconds must not be negative, got {self.hang_seconds}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. No teacher means cross-entropy alone.

    student_checkpoint  the run directory of the training that the student goes on from, or one checkpoint in it: its
                        weights alone, in any layout. null: random weights of `train.seed`
    fp8  of the student's linear layers; null: in the precision of `train.bf16`
    """

    run_dir: str
    student: ModelConfig
    student_checkpoint: str | None = None
    fp8: Fp8Config | None = None
    teachers: tuple[TeacherConfig, ...] = ()
    data: DataConfig
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig
    train: TrainConfig
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        require(
            len(set(names)) == len(names),
            f"teachers: expected a name of its own for each, got {', '.join(names)}; set teachers.1.name and so on",
        )
        check_fp8("student", self.fp8, self.student)
        per_step = self.train.micro_batch_size * self.parallel.data_parallel_size
        require(
            self.train.global_batch_size % per_step == 0,
            f"global_batch_size {self.train.global_batch_size} is not divisible by "
            f"micro_batch_size x data_parallel_size = {per_step}",
        )
        stages = self.parallel.pipeline_model_parallel_size
        require(
            self.parallel.virtual_pipeline_model_parallel_size == 1 or self.num_microbatches % stages == 0,
            f"virtual pipeline stages take turns at {stages} micro batches, but a step has {self.num_microbatches}; "
            "change global_batch_size or micro_batch_size",
        )
        _check_heads("student", self.student, self.parallel)
        for teacher in self.teachers:
            label, layout = f"teacher {teacher.name!r}", self.layout_of(teacher)
            require(
                teacher.kind != "colocated" or layout.world_size == self.parallel.world_size,
                f"{label}: parallel needs {layout.world_size} ranks, but a colocated teacher has the student's "
                f"{self.parallel.world_size}; change its data_parallel_size or its other sizes, or set kind=remote",
            )
            _check_heads(label, teacher.model, layout)
            per_pass = self.train.micro_batch_size * layout.data_parallel_size
            require(
                self.train.global_batch_size % per_pass == 0,
                f"{label}: global_batch_size {self.train.global_batch_size} is not divisible by "
                f"micro_batch_size x its data_parallel_size = {per_pass}",
            )

    def layout_of(self, teacher: TeacherConfig) -> ParallelConfig:
        """The layout that a teacher's model runs in; of a cached one, the student's, which reads what it said."""
        return teacher.own_layout if teacher.num_ranks else teacher.parallel or self.parallel

    @property
    def world_size(self) -> int:
        """Ranks of the job: the student's, then those of each remote teacher."""
        return self.parallel.world_size + sum(teacher.num_ranks for teacher in self.teachers)

    def rank_names(self) -> list[str]:
        """How messages name each rank of the job: with the teacher whose it is."""
        names = [f"rank {rank}" for rank in range(self.parallel.world_size)]
        for teacher in self.teachers:
            first = len(names)
            names += [f"rank {first + i} (teacher {teacher.name!r})" for i in range(teacher.num_ranks)]
        return names

    @property
    def num_microbatches(self) -> int:
        """Micro batches of one step on one data-parallel rank."""
        return self.train.global_batch_size // (self.train.micro_batch_size * self.parallel.data_parallel_size)


def _check_heads(label: str, model: ModelConfig, parallel: ParallelConfig) -> None:
    tp_size = parallel.tensor_model_parallel_size
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    for count, what in ((heads, "attention heads"), (groups, "query groups")):
        require(
            count % tp_size == 0, f"{label}: {count} {what} are not divisible by tensor_model_parallel_size {tp_size}"
        )
