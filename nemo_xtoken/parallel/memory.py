"""How many rows the loss looks at together: its memory is a budget, whatever the sequence length.

Two sizes. A *block* is what one matrix product of each head makes: its logits are held, and the student's become their
own gradient in place. A *tile* of it is what the loss is computed on at a time, with all that autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_xtoken.config import LossConfig

MIB = 2**20
BLOCK_SHARE, TILE_SHARE = 0.62, 0.3
"""Parts of the budget; the rest is for hidden rows, slabs of the head and indices."""
TEACHER_ROWS_PER_STUDENT_ROW = 2
"""With `block_rows` a block holds at most this many times as many teacher rows."""
SLAB_BYTES = 8 * MIB
"""Temporaries of a head's rows are at most this large."""


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """What fits.

    student_width, teacher_width  columns of a row on the rank that has most, so that every rank has the same blocks
    item_bytes                    of a logit
    low_bytes                     of a value in the heads' precision where that is lower, else 0
    student_tile, teacher_tile    arrays of a tile's width that the loss holds at the same time
    """

    config: LossConfig
    student_width: int
    teacher_width: int
    item_bytes: int
    low_bytes: int
    student_tile: int
    teacher_tile: int

    def block(self, student_rows: int, teacher_rows: int) -> bool:
        """Whether a block may have so many rows."""
        if self.config.block_rows is not None:
            limit = self.config.block_rows
            return student_rows <= limit and teacher_rows <= TEACHER_ROWS_PER_STUDENT_ROW * limit
        values = student_rows * self.student_width + teacher_rows * self.teacher_width
        return values * (self.item_bytes + self.low_bytes) <= BLOCK_SHARE * self._budget

    def tile(self, student_rows: int, teacher_rows: int) -> bool:
        """Whether a tile may have so many rows."""
        student = student_rows * self.student_width * self.student_tile
        teacher = teacher_rows * self.teacher_width * self.teacher_tile
        return (student + teacher) * self.item_bytes <= TILE_SHARE * self._budget

    def rows_of(self, width: int) -> int:
        """Rows of one array of this width that may be held, at least one."""
        rows = self.config.block_rows or int(BLOCK_SHARE * self._budget / (self.item_bytes + self.low_bytes) / width)
        return max(1, rows)

    @property
    def _budget(self) -> float:
        return self.config.block_memory_mib * MIB


def slabs(rows: int, row_bytes: int) -> list[slice]:
    """Rows of a head in consecutive parts whose temporaries are at most `SLAB_BYTES`."""
    step = max(1, SLAB_BYTES // max(1, row_bytes))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
