"""Which tokens of the other side each token is, in order: all of them, where W keeps some with weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import ProjectionError


@dataclass(frozen=True, eq=False)
class PieceTable:
    """The pieces of all tokens of a side, one token after another.

    ids   [pieces] int32, ids of the other side
    ends  [V] int32, ascending: where each token's pieces end. A token that stands for none of the other side has none
    Raises ProjectionError where the arrays are not such a table.
    """

    ids: NDArray[np.int32]
    ends: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.ids.dtype != np.int32 or self.ends.dtype != np.int32 or self.ids.ndim != 1 or self.ends.ndim != 1:
            raise ProjectionError(f"pieces must be two rows of int32, got {self.ids.dtype} and {self.ends.dtype}")
        last = int(self.ends[-1]) if len(self.ends) else 0
        if (np.diff(self.ends, prepend=0) < 0).any() or last != len(self.ids) or self.ids.min(initial=0) < 0:
            raise ProjectionError(f"the pieces of a projection must end in order, at {len(self.ids)}, got {last}")

    @property
    def starts(self) -> NDArray[np.int32]:
        """[V] where each token's pieces start."""
        return np.concatenate([np.zeros(1, np.int32), self.ends])[:-1]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """[V] number of pieces."""
        return self.ends - self.starts

    @property
    def first(self) -> NDArray[np.int64]:
        """[V] the first piece of each token, -1 for none."""
        first = np.full(len(self.ends), -1, np.int64)
        filled = self.lengths > 0
        first[filled] = self.ids[self.starts[filled]]
        return first

    def only(self, kept: NDArray[np.bool_]) -> PieceTable:
        """The same with the kept tokens' pieces alone, [V] bool."""
        lengths = np.where(kept, self.lengths, 0)
        return PieceTable(self.ids[np.repeat(kept, self.lengths)], lengths.cumsum().astype(np.int32))

    def of_token(self, token_id: int) -> list[int]:
        """The pieces of one token."""
        return self.ids[self.starts[token_id] : self.ends[token_id]].tolist()
