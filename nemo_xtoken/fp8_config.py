"""How the linear layers of a model multiply in FP8; part of `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_xtoken.errors import require, require_positive

Fp8Recipe = Literal["delayed", "current", "blockwise", "mxfp8"]
Fp8Format = Literal["hybrid", "e4m3"]
AmaxAlgorithm = Literal["max", "most_recent"]


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """FP8 as Transformer Engine does it. Embedding, head, norms, attention core and the loss stay as they are.

    recipe   delayed: one scale per tensor, from the largest values of earlier steps; current: from the tensor itself;
             blockwise: one for 128 values, 128 x 128 of a weight; mxfp8: one power of two for 32 values
    format   hybrid: E4M3 forward and E5M2 for gradients; e4m3: for all; null: hybrid for scales per tensor, else e4m3
    margin   delayed: the scale is divided by 2^margin
    amax_history_length, amax_algorithm  delayed: how many passes back, and which of their largest values counts
    first_layers_in_bf16, last_layers_in_bf16  layers that do without FP8
    fp8_parameters  the weights themselves are kept in FP8; backend te only
    backend  te: Transformer Engine on a GPU; emulate: the same rounding in torch, fp32 products, on any device
    """

    recipe: Fp8Recipe
    format: Fp8Format | None = None
    margin: int = 0
    amax_history_length: int = 1024
    amax_algorithm: AmaxAlgorithm = "max"
    first_layers_in_bf16: int = 0
    last_layers_in_bf16: int = 0
    fp8_parameters: bool = False
    backend: Literal["te", "emulate"] = "te"

    def __post_init__(self) -> None:
        require_positive(self, "amax_history_length")
        plain = self.first_layers_in_bf16, self.last_layers_in_bf16
        require(min(plain) >= 0, f"layers in bf16 must not be negative, got {plain[0]} and {plain[1]}")
        require(
            self.recipe != "delayed" or max(plain) == 0,
            "delayed scaling has all layers in FP8: its scales are updated for all of them at once; "
            "set first_layers_in_bf16 and last_layers_in_bf16 to 0 or take another recipe",
        )
        require(
            self.recipe == "delayed" or self.margin == 0,
            f"margin is for delayed scaling alone, got {self.margin} for recipe {self.recipe}; set it to 0",
        )
        require(
            not self.fp8_parameters or self.backend == "te",
            "fp8_parameters needs backend te: the emulation keeps the weights as they are and rounds them when they "
            "are multiplied; set it to false",
        )

    @property
    def number_format(self) -> Fp8Format:
        """The format in use: Transformer Engine's default for the recipe where none is set."""
        return self.format or ("hybrid" if self.recipe in ("delayed", "current") else "e4m3")
