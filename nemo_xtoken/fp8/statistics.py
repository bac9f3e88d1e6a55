"""What became of the numbers of a layer: largest values, scales, and the shares that FP8 could not hold."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_xtoken.fp8.quantise import Quantised, out_of_range

SUMS = ("underflow", "overflow", "values")
LARGEST = ("amax", "coarsest")


class Statistics:
    """Of the tensors of one layer, since the last `clear`; nothing is counted unless `collecting`.

    sums     by tensor, [3] float64: values that became zero, that were cut to the largest number, and all that are not
             zero
    largest  by tensor, [2] fp32: the largest absolute value, and the coarsest 1 / scale
    """

    def __init__(self) -> None:
        self.collecting = False
        self.sums: dict[str, Tensor] = {}
        self.largest: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Begin anew."""
        self.sums, self.largest = {}, {}

    def add(self, slot: str, tensor: Tensor, quantised: Quantised) -> None:
        """Count a tensor and what it was rounded to."""
        if not self.collecting:
            return
        sums = torch.stack([*out_of_range(tensor, quantised), tensor.count_nonzero()]).double()
        coarsest = torch.where(tensor != 0, quantised.inverse, 0).max()  # the scale of a block of zeros is none
        largest = torch.stack([tensor.abs().max().float(), coarsest])
        self.sums[slot] = self.sums[slot] + sums if slot in self.sums else sums
        self.largest[slot] = torch.maximum(self.largest[slot], largest) if slot in self.largest else largest


def summary(sums: Tensor, largest: Tensor) -> dict[str, float]:
    """amax, scale (the smallest of a tensor's blocks), and the shares of the values that were out of range."""
    underflow, overflow, values = (float(number) for number in sums)
    amax, coarsest = (float(number) for number in largest)
    return {
        "amax": amax,
        "scale": 1 / coarsest if coarsest else 0.0,
        "underflow": underflow / max(values, 1),
        "overflow": overflow / max(values, 1),
    }
