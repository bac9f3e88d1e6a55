"""A teacher of a run: where its hidden states come from, how it is laid out, and its loss."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from nemo_xtoken.errors import require, require_positive
from nemo_xtoken.fp8_config import Fp8Config
from nemo_xtoken.loss_config import LossConfig
from nemo_xtoken.model_config import ModelConfig, ParallelConfig

Offload = Literal["hidden", "parameters", "both"]
"""What of a teacher waits in host memory."""

FILE_NAME = re.compile(r"[A-Za-z0-9._-]+")


def check_teacher(name: str, weight: float, loss: LossConfig, learn_projection: bool, projection_lr: float) -> None:
    """Raises ConfigError for what a teacher's settings must not say, whatever framework its model is from."""
    require(weight > 0, f"teacher {name!r}: weight must be positive, got {weight}")
    require(
        projection_lr > 0,
        f"teacher {name!r}: projection_lr must be positive, got {projection_lr}; "
        "learn_projection=false keeps W as it is",
    )
    require(
        not learn_projection or loss.mode == "p_kl",
        f"teacher {name!r}: learn_projection needs loss.mode p_kl, the one mode that projects by the weights "
        f"of W, got {loss.mode}; set one of them",
    )
    require(
        not (learn_projection and loss.chain),
        f"teacher {name!r}: loss.chain takes the first piece of each token, which leaves nothing of W to learn; "
        "set loss.chain or learn_projection to false",
    )
    require(
        FILE_NAME.fullmatch(name) is not None,
        f"teacher names are letters, digits and . _ - (they name files and metrics), got {name!r}",
    )


def check_teacher_fp8(name: str, fp8: Fp8Config | None) -> None:
    """Raises ConfigError for a recipe that needs training passes, which a frozen model has none of."""
    require(
        fp8 is None or fp8.recipe != "delayed",
        f"teacher {name!r}: delayed scaling learns its scales from training passes, which a frozen model has "
        "none of; take fp8.recipe current, blockwise or mxfp8, or null",
    )


def check_fp8(label: str, fp8: Fp8Config | None, model: ModelConfig) -> None:
    """Raises ConfigError where a model with FP8 would have no layer in FP8."""
    plain = 0 if fp8 is None else fp8.first_layers_in_bf16 + fp8.last_layers_in_bf16
    require(
        fp8 is None or plain < model.num_layers,
        f"{label}: fp8 leaves {plain} layers in bf16, which is all {model.num_layers} of the model; lower "
        "first_layers_in_bf16 or last_layers_in_bf16, or remove fp8",
    )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A frozen teacher.

    kind        where its hidden states come from: a model on the student's ranks (colocated) or on other ranks of the
                job (remote), or what was stored of them (cached)
    checkpoint  the run directory of the teacher's own training, or one checkpoint in it
    parallel    its own layout. remote: on ranks that come after the student's and those of the teachers before it; null
                is one rank. colocated: on the student's ranks, as many of them, over all micro batches of a step before
                the student; null is the student's, the model whole on the last pipeline stage and run when it is asked
    offload     colocated with `parallel`: what waits in host memory. hidden: the hidden states of a step; parameters:
                the model's, between its turns; both
    patience_seconds  remote: how long the student waits for its hidden states before it counts as dead
    projection  the file of W for this pair of tokenizers; null builds it into the run's directory, once
    weight      alpha: L_KD is the sum of weight·L_KD of each teacher
    cache       cached: the name of what was stored, DATA.teachers/NAME beside the data; null: the teacher's name
    prepared_as the name of its tokens in the prepared data; null: its own name, and where the run and the data have one
                teacher each, that
    learn_projection  P-KL: W is trained too, from what the file has; each checkpoint has the file of what was learnt
    projection_lr     its learning rate, constant (Adam, no weight decay, no clipping)
    fp8  how its layers multiply, whatever the student's do; null: in the run's own precision
    """

    name: str = "teacher"
    kind: Literal["colocated", "remote", "cached"] = "colocated"
    model: ModelConfig
    checkpoint: str
    parallel: ParallelConfig | None = None
    offload: Offload | None = None
    patience_seconds: float = 300.0
    projection: str | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    weight: float = 1.0
    cache: str | None = None
    prepared_as: str | None = None
    learn_projection: bool = False
    projection_lr: float = 1e-2
    fp8: Fp8Config | None = None

    def __post_init__(self) -> None:
        check_teacher(self.name, self.weight, self.loss, self.learn_projection, self.projection_lr)
        require(
            self.cache is None or FILE_NAME.fullmatch(self.cache) is not None,
            f"teacher {self.name!r}: cache is a name of letters, digits and . _ -, got {self.cache!r}; the cache lies "
            "beside the data",
        )
        check_teacher_fp8(self.name, self.fp8)
        check_fp8(f"teacher {self.name!r}", self.fp8, self.model)
        require_positive(self, "patience_seconds")
        require(
            self.kind != "cached" or self.parallel is None,
            f"teacher {self.name!r}: a cached teacher has no model and no layout; leave out parallel, or set kind",
        )
        require(
            self.offload is None or (self.kind == "colocated" and self.parallel is not None),
            f"teacher {self.name!r}: offload is of a colocated teacher that runs before the student, in a layout of "
            "its own; set kind=colocated and parallel (it may be the student's), or leave out offload",
        )
        require(
            self.own_layout.virtual_pipeline_model_parallel_size == 1,
            f"teacher {self.name!r}: a teacher has no virtual pipeline stages; leave out "
            "parallel.virtual_pipeline_model_parallel_size",
        )

    @property
    def cache_name(self) -> str:
        """The name of its cache beside the data."""
        return self.cache or self.name

    @property
    def own_layout(self) -> ParallelConfig:
        """The layout of a remote teacher."""
        return self.parallel or ParallelConfig()

    @property
    def num_ranks(self) -> int:
        """Ranks of the job that are this teacher's alone."""
        return self.own_layout.world_size if self.kind == "remote" else 0
