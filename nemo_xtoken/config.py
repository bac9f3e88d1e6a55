"""A whole run as frozen, keyword-only dataclasses, each checked when it is made; `config_io` reads them from YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from nemo_xtoken.errors import ConfigError

LossMode = Literal["p_kl", "h_kl", "gold", "uld", "strict_top_k", "same_tokenizer"]
Merge = Literal["mean", "first", "last"]
Direction = Literal["forward", "reverse"]
Balance = Literal["dynamic", "micro_batch", "fixed"]

FILE_NAME = re.compile(r"[A-Za-z0-9._-]+")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the chunk distributions of one teacher and the student are compared (X-Token, arXiv 2605.21699).

    mode              p_kl where critical tokens lie outside the common set, h_kl where they lie inside: see the audit
    merge             how the predictors of a chunk become one distribution
    direction         forward is KL(teacher || student)
    temperature       of both softmaxes; the loss carries its square
    teacher_top_k     P-KL: only the columns with the largest teacher logit in the micro batch; None is all, exact
    hybrid_threshold  H-KL: least weight W[s, t] for which (s, t) joins the common set
    sorted_cap        GOLD, H-KL, ULD: most entries of the sorted L1
    strict_top_k      strict top-k: how many of the teacher's likeliest tokens of a chunk are looked at
    one_to_one_only   leave out chunks of more than one token on either side
    block_rows        rows of logits held at a time; memory grows with it, the result does not depend on it
    """

    mode: LossMode = "p_kl"
    merge: Merge = "mean"
    direction: Direction = "forward"
    temperature: float = 1.0
    teacher_top_k: int | None = None
    hybrid_threshold: float = 0.6
    sorted_cap: int = 8192
    strict_top_k: int = 16
    one_to_one_only: bool = False
    block_rows: int = 512

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        _require(
            self.teacher_top_k is None or self.teacher_top_k > 0,
            f"teacher_top_k must be null or positive, got {self.teacher_top_k}",
        )
        _require(0 < self.hybrid_threshold <= 1, f"hybrid_threshold must lie in (0, 1], got {self.hybrid_threshold}")
        _require(self.sorted_cap > 0, f"sorted_cap must be positive, got {self.sorted_cap}")
        _require(self.strict_top_k > 0, f"strict_top_k must be positive, got {self.strict_top_k}")
        _require(self.block_rows > 0, f"block_rows must be positive, got {self.block_rows}")

    def with_mode(self, mode: LossMode) -> LossConfig:
        """The same settings for another mode."""
        return replace(self, mode=mode)


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How L_KD and L_CE become one loss.

    mode       dynamic: sg(L_CE / L_KD)·L_KD + L_CE with the ratio of the global step before; micro_batch: the ratio of
               each micro batch, as the paper's authors do; fixed: kd_weight·L_KD + ce_weight·L_CE
    max_ratio  the ratio's ceiling, which keeps it finite as L_KD goes to zero
    """

    mode: Balance = "dynamic"
    kd_weight: float = 1.0
    ce_weight: float = 1.0
    max_ratio: float = 1000.0

    def __post_init__(self) -> None:
        _require(
            min(self.kd_weight, self.ce_weight) >= 0,
            f"loss weights must not be negative, got {self.kd_weight} and {self.ce_weight}",
        )
        _require(self.max_ratio > 0, f"max_ratio must be positive, got {self.max_ratio}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Megatron-core GPT. Names are TransformerConfig's.

    vocab_size  rows of the head before padding; null takes the tokenizer's size from the prepared data
    make_vocab_size_divisible_by  the head is padded to a multiple of this times the tensor parallel size
    add_head_bias  the head has a bias, one number per token
    logit_scale    the logits are times this: Cohere's logit_scale, 1 / logits_scaling of Granite
    final_logit_softcapping  Gemma 2's: the logits are softcapping·tanh(logits / softcapping); null for none
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int | None = None
    ffn_hidden_size: int | None = None
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 8
    normalization: Literal["LayerNorm", "RMSNorm"] = "RMSNorm"
    activation: Literal["gelu", "swiglu"] = "swiglu"
    rotary_base: int = 10000
    share_embeddings_and_output_weights: bool = False
    add_head_bias: bool = False
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None
    init_method_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_attention_heads", "make_vocab_size_divisible_by", "rotary_base"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require(
            self.logit_scale > 0,
            f"logit_scale must be positive, got {self.logit_scale}; Granite's logits_scaling divides",
        )
        _require(
            self.final_logit_softcapping is None or self.final_logit_softcapping > 0,
            f"final_logit_softcapping must be null or positive, got {self.final_logit_softcapping}",
        )
        heads, groups = self.num_attention_heads, self.num_query_groups or self.num_attention_heads
        _require(
            self.hidden_size % heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}",
        )
        _require(heads % groups == 0, f"num_attention_heads {heads} is not divisible by num_query_groups {groups}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A frozen teacher on the student's ranks.

    checkpoint  the run directory of the teacher's own training, or one checkpoint in it
    projection  the file of W for this pair of tokenizers; null builds it into the run's directory, once
    weight      alpha: L_KD is the sum of weight·L_KD of each teacher
    prepared_as the name of its tokens in the prepared data; null: its own name, and where the run and the data have one
                teacher each, that
    learn_projection  P-KL: W is trained too, from what the file has; each checkpoint has the file of what was learnt
    projection_lr     its learning rate, constant (Adam, no weight decay, no clipping)
    """

    name: str = "teacher"
    model: ModelConfig
    checkpoint: str
    projection: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    weight: float = 1.0
    prepared_as: str | None = None
    learn_projection: bool = False
    projection_lr: float = 1e-2

    def __post_init__(self) -> None:
        _require(self.weight > 0, f"teacher {self.name!r}: weight must be positive, got {self.weight}")
        _require(
            self.projection_lr > 0,
            f"teacher {self.name!r}: projection_lr must be positive, got {self.projection_lr}; "
            "learn_projection=false keeps W as it is",
        )
        _require(
            not self.learn_projection or self.loss.mode == "p_kl",
            f"teacher {self.name!r}: learn_projection needs loss.mode p_kl, the one mode that projects by the weights "
            f"of W, got {self.loss.mode}; set one of them",
        )
        _require(
            FILE_NAME.fullmatch(self.name) is not None,
            f"teacher names are letters, digits and . _ - (they name files and metrics), got {self.name!r}",
        )


@dataclass(frozen=True, kw_only=True)
class BlendPart:
    """Prepared data that is mixed with others. `weight` is its share of the samples, relative to theirs."""

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.weight > 0, f"data.blend: weight of {self.path} must be positive, got {self.weight}")


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
        _require(
            bool(self.path) != bool(self.blend),
            f"expected data.path or data.blend, got {'both' if self.path else 'neither'}",
        )
        _require(
            self.student_sequence_length > 1,
            f"student_sequence_length must be at least 2, got {self.student_sequence_length}",
        )
        _require(
            self.teacher_sequence_length > 1,
            f"teacher_sequence_length must be at least 2, got {self.teacher_sequence_length}",
        )
        for entry in self.teacher_lengths:
            _require(
                entry.sequence_length > 1,
                f"teacher_lengths: sequence_length of {entry.teacher} must be at least 2, got {entry.sequence_length}",
            )
        names = [entry.teacher for entry in self.teacher_lengths]
        _require(len(set(names)) == len(names), f"teacher_lengths names a teacher twice: {', '.join(names)}")

    def teacher_length(self, name: str) -> int:
        """The sequence length of the teacher of this name in the prepared data."""
        own = {entry.teacher: entry.sequence_length for entry in self.teacher_lengths}
        return own.get(name, self.teacher_sequence_length)

    @property
    def parts(self) -> tuple[BlendPart, ...]:
        """What training reads: the blend, or `path` alone."""
        return self.blend or (BlendPart(path=self.path),)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Megatron's layout of the student. world size = tensor x pipeline x context x data.

    virtual_pipeline_model_parallel_size  pieces of a stage's layers, which take turns: a shorter pipeline bubble
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False

    def __post_init__(self) -> None:
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "virtual_pipeline_model_parallel_size",
            "context_parallel_size",
            "data_parallel_size",
        ):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require(
            not self.sequence_parallel or self.tensor_model_parallel_size > 1,
            "sequence_parallel needs tensor_model_parallel_size > 1",
        )
        _require(
            self.virtual_pipeline_model_parallel_size == 1 or self.pipeline_model_parallel_size > 1,
            "virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size > 1",
        )

    @property
    def world_size(self) -> int:
        """Number of ranks of the run."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
        )


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
        _require(self.lr > 0, f"lr must be positive, got {self.lr}")
        _require(0 <= self.min_lr <= self.lr, f"min_lr must lie between 0 and lr, got {self.min_lr}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, its batches and what it writes. Intervals in steps; 0: never, or only at the end."""

    steps: int
    micro_batch_size: int
    global_batch_size: int
    seed: int = 1234
    bf16: bool = False
    log_interval: int = 1
    checkpoint_interval: int = 100
    keep_checkpoints: int = 2
    validation_interval: int = 0
    validation_batches: int = 8
    hang_seconds: float = 1800.0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "micro_batch_size",
            "global_batch_size",
            "log_interval",
            "keep_checkpoints",
            "validation_batches",
        ):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. No teacher means cross-entropy alone."""

    run_dir: str
    student: ModelConfig
    teachers: tuple[TeacherConfig, ...] = ()
    data: DataConfig
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig
    train: TrainConfig
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        _require(
            len(set(names)) == len(names),
            f"teachers: expected a name of its own for each, got {', '.join(names)}; set teachers.1.name and so on",
        )
        per_step = self.train.micro_batch_size * self.parallel.data_parallel_size
        _require(
            self.train.global_batch_size % per_step == 0,
            f"global_batch_size {self.train.global_batch_size} is not divisible by "
            f"micro_batch_size x data_parallel_size = {per_step}",
        )
        stages = self.parallel.pipeline_model_parallel_size
        _require(
            self.parallel.virtual_pipeline_model_parallel_size == 1 or self.num_microbatches % stages == 0,
            f"virtual pipeline stages take turns at {stages} micro batches, but a step has {self.num_microbatches}; "
            "change global_batch_size or micro_batch_size",
        )
        tp_size = self.parallel.tensor_model_parallel_size
        for label, model in (("student", self.student), *((f"teacher {t.name!r}", t.model) for t in self.teachers)):
            heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
            _require(
                heads % tp_size == 0,
                f"{label}: {heads} attention heads are not divisible by tensor_model_parallel_size {tp_size}",
            )
            _require(
                groups % tp_size == 0,
                f"{label}: {groups} query groups are not divisible by tensor_model_parallel_size {tp_size}",
            )

    @property
    def num_microbatches(self) -> int:
        """Micro batches of one step on one data-parallel rank."""
        return self.train.global_batch_size // (self.train.micro_batch_size * self.parallel.data_parallel_size)
