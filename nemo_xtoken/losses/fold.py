"""Teacher tokens that no student token begins with: each counts as the first piece that both sides have of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """What becomes of logits that have, behind the columns that W reaches, those of the folded tokens.

    ids      [folded] int64 ascending, the folded tokens
    width    columns that W reaches
    targets  [targets] int64, those among them that some token counts as, ascending
    places   [folded] int64, the place among `targets` of the one that each token counts as
    """

    ids: Tensor
    width: int
    targets: Tensor
    places: Tensor

    @classmethod
    def onto(cls, ids: Ids, columns: Ids, width: int, device: torch.device | str = "cpu") -> Fold:
        """The fold of these tokens, each onto one of so many columns; [folded] both."""
        arrays = (ids, *np.unique(columns, return_inverse=True))
        ids_here, targets, places = (torch.as_tensor(array, device=device) for array in arrays)
        return cls(ids_here, width, targets, places)

    def __call__(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """[rows, width + folded] -> [rows, width], not differentiable.

        A column's probability at the temperature is its own and that of all tokens that count as it: their log-sum-exp.
        """
        kept = logits[:, : self.width].detach()
        if len(self.places) == 0:
            return kept
        kept = kept.clone()
        own, folded = kept[:, self.targets] / temperature, logits[:, self.width :].detach() / temperature
        places = self.places.expand(len(folded), -1)
        largest = own.scatter_reduce(1, places, folded, "amax").clamp_min(torch.finfo(own.dtype).min)
        sums = (own - largest).exp().scatter_add(1, places, (folded - largest.gather(1, places)).exp())
        kept[:, self.targets] = (sums.log() + largest) * temperature
        return kept
