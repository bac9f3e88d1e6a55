"""Which chunks count in a loss."""

from __future__ import annotations

from nemo_xtoken.config import LossConfig
from nemo_xtoken.types import ChunkRows


def counted(chunks: ChunkRows, config: LossConfig) -> ChunkRows:
    """The valid chunks that the config's loss is summed over and divided by; all have mask True."""
    chunks = chunks.valid()
    if not (config.one_to_one_only or config.mode == "strict_top_k"):
        return chunks
    single_student = chunks.student_end - chunks.student_start == 1
    single_teacher = chunks.teacher_end - chunks.teacher_start == 1
    return chunks.masked(single_student & single_teacher).valid()
