"""How a student and a teacher are compared, and how that and cross-entropy become one loss; part of `config`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from nemo_xtoken.errors import require, require_positive

LossMode = Literal["p_kl", "h_kl", "gold", "uld", "strict_top_k", "same_tokenizer"]
Merge = Literal["mean", "first", "last"]
Direction = Literal["forward", "reverse"]
Balance = Literal["dynamic", "micro_batch", "fixed"]
Implementation = Literal["auto", "torch", "triton"]
PROJECTING: tuple[LossMode, ...] = ("p_kl", "same_tokenizer")
"""The modes that compare both sides on the teacher's columns, the student's projected by W."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the chunk distributions of one teacher and the student are compared (X-Token, arXiv 2605.21699).

    mode              p_kl where critical tokens lie outside the common set, h_kl where they lie inside: see the audit
    merge             how the predictors of a chunk become one distribution
    direction         forward is KL(teacher || student)
    chain             P-KL, merge first: compare a chunk of one token on either side piece by piece, by the chain rule:
                      the first piece by W, which tokens that only the teacher has count as, then for each piece that
                      has come what follows it, or that the token ends. See `losses.piece_chain`
    temperature       of both softmaxes; the loss carries its square
    teacher_top_k     P-KL: only the columns with the largest teacher logit in the micro batch; None is all, exact
    hybrid_threshold  H-KL: least weight W[s, t] for which (s, t) joins the common set
    sorted_cap        GOLD, H-KL, ULD: most entries of the sorted L1
    strict_top_k      strict top-k: how many of the teacher's likeliest tokens of a chunk are looked at
    one_to_one_only   leave out chunks of more than one token on either side
    block_memory_mib  memory of the loss above its inputs and their gradients; only a chunk that is longer takes more
    block_rows        rows of logits held at a time; null is as many as block_memory_mib allows. Results are the same
    implementation    of what dominates on a GPU; auto is triton on CUDA where it is installed, else torch. The kernels
                      are those of p_kl and same_tokenizer; the other modes are torch's
    """

    mode: LossMode = "p_kl"
    merge: Merge = "mean"
    direction: Direction = "forward"
    chain: bool = False
    temperature: float = 1.0
    teacher_top_k: int | None = None
    hybrid_threshold: float = 0.6
    sorted_cap: int = 8192
    strict_top_k: int = 16
    one_to_one_only: bool = False
    block_memory_mib: float = 256.0
    block_rows: int | None = None
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "temperature", "sorted_cap", "strict_top_k", "block_memory_mib")
        require(
            self.block_rows is None or self.block_rows > 0,
            f"block_rows must be null or positive, got {self.block_rows}",
        )
        require(
            self.teacher_top_k is None or self.teacher_top_k > 0,
            f"teacher_top_k must be null or positive, got {self.teacher_top_k}",
        )
        require(
            self.implementation != "triton" or self.mode in PROJECTING,
            f"loss mode {self.mode} has no triton kernels, {' and '.join(PROJECTING)} have: set implementation to auto",
        )
        if self.chain:
            self._check_chain()
        require(0 < self.hybrid_threshold <= 1, f"hybrid_threshold must lie in (0, 1], got {self.hybrid_threshold}")

    def _check_chain(self) -> None:
        for is_met, needed, value in (
            (self.mode == "p_kl", "mode p_kl", self.mode),
            (self.merge == "first", "merge first", self.merge),
            (self.teacher_top_k is None, "teacher_top_k null", self.teacher_top_k),
            (not self.one_to_one_only, "one_to_one_only false", self.one_to_one_only),
        ):
            require(
                is_met,
                f"loss.chain compares the pieces of a chunk on all of the teacher's columns: it needs loss.{needed}, "
                f"got {value}",
            )

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
        require(
            min(self.kd_weight, self.ce_weight) >= 0,
            f"loss weights must not be negative, got {self.kd_weight} and {self.ce_weight}",
        )
        require_positive(self, "max_ratio")
