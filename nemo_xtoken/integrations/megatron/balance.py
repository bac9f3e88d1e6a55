"""How strongly the distillation loss counts against cross-entropy, and what of that a checkpoint keeps."""

from __future__ import annotations

from typing import Any

from nemo_xtoken.config import BalanceConfig


def balancing_ratio(kd: float, ce: float, max_ratio: float) -> float:
    """sg(L_CE / L_KD), at most `max_ratio`: also where L_KD is zero."""
    return min(ce / kd, max_ratio) if kd > 0 else max_ratio


class Balance:
    """Weights of both losses for the next step: L = kd_weight·L_KD + ce_weight·L_CE.

    dynamic      kd_weight is the ratio of the global means of the step before, so neither micro batches nor ranks
                 change it; before the first step it has to be measured on the first global batch
    fixed        the weights of the config
    micro_batch  kd_weight is taken anew from each micro batch, by the loss function
    """

    def __init__(self, config: BalanceConfig) -> None:
        self.config = config
        self.ratio: float | None = None

    @property
    def needs_measuring(self) -> bool:
        """Whether a forward pass over the global batch has to come before the step."""
        return self.config.mode == "dynamic" and self.ratio is None

    @property
    def kd_weight(self) -> float:
        """Weight of L_KD, 1 where there is nothing to go by: no chunk has been seen, or micro batches decide."""
        if self.config.mode == "fixed":
            return self.config.kd_weight
        return 1.0 if self.ratio is None else self.ratio

    @property
    def ce_weight(self) -> float:
        """Weight of L_CE."""
        return self.config.ce_weight if self.config.mode == "fixed" else 1.0

    def update(self, kd: float | None, ce: float) -> None:
        """Take in the global means of a step; without a valid chunk (None) the ratio stays as it is."""
        if self.config.mode == "dynamic" and kd is not None:
            self.ratio = balancing_ratio(kd, ce, self.config.max_ratio)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"ratio": self.ratio}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.ratio = state["ratio"]
