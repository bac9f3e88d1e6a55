"""Whether a layout's numbers come out even: of a recipe, before a job is started, and of what it builds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_xtoken.integrations.megatron.arithmetic import check_model, even


def check_layout(student: Any, teachers: Sequence[Any], data: Any, strategy: Any, world_size: int) -> int:
    """The data parallel size on this many ranks. Raises ConfigError for the first number that does not come out even.

    student   a GPTConfig                     recipe.model.config
    teachers  NemoTeachers                    recipe.model.distillation.teachers
    data      a PreparedDataModule            recipe.data
    strategy  a MegatronStrategy              recipe.trainer.strategy
    Each may be the nemo-run config of one as well. Teachers whose config is in their checkpoint are left out.
    """
    stages = strategy.pipeline_model_parallel_size
    ranks = strategy.tensor_model_parallel_size * stages * strategy.context_parallel_size
    even("the number of ranks", world_size, "tensor x pipeline x context parallel size", ranks)
    dp_size = world_size // ranks
    samples = data.micro_batch_size * dp_size
    even("global_batch_size", data.global_batch_size, "micro_batch_size x data parallel size", samples)
    check_model("the student", student, data.seq_length, strategy)
    even("num_layers of the student", student.num_layers, "pipeline_model_parallel_size", stages)
    lengths = data.teacher_lengths or {}
    for teacher in teachers:
        if teacher.config is not None:
            length = lengths.get(teacher.prepared_as or teacher.name, data.teacher_seq_length)
            check_model(f"teacher {teacher.name!r}", teacher.config, length, strategy)
    return dp_size
