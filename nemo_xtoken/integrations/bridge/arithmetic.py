"""Whether a layout's numbers come out even, told before a job is started."""

from __future__ import annotations

from nemo_xtoken.errors import require
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.megatron.arithmetic import check_model, even


def check_layout(config: DistillationContainer, world_size: int) -> int:
    """The data parallel size on this many ranks. Raises ConfigError for the first number that does not come out even.

    Checks ranks, batches, attention heads, layers, vocabularies and sequence lengths of the student, and of the
    teachers whose shapes are known without a download.
    """
    student, train = config.model, config.train
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
        _positive(f"model.{name}", getattr(student, name))
    for name in ("micro_batch_size", "global_batch_size", "train_iters"):
        _positive(f"train.{name}", getattr(train, name))
    _positive("the number of ranks", world_size)
    ranks = student.tensor_model_parallel_size * student.pipeline_model_parallel_size * student.context_parallel_size
    even("the number of ranks", world_size, "tensor x pipeline x context parallel size", ranks)
    dp_size = world_size // ranks
    samples = train.micro_batch_size * dp_size
    even("train.global_batch_size", train.global_batch_size, "micro_batch_size x data parallel size", samples)
    data = config.dataset.data
    check_model("the student", student, data.student_sequence_length)
    stages = student.pipeline_model_parallel_size
    if student.num_layers_in_first_pipeline_stage is None and student.num_layers_in_last_pipeline_stage is None:
        even("num_layers of the student", student.num_layers, "pipeline_model_parallel_size", stages)
    for teacher in config.teachers:
        if teacher.provider is not None:
            length = data.teacher_length(teacher.prepared_as or teacher.name)
            check_model(f"teacher {teacher.name!r}", teacher.provider, length, student)
    return dp_size


def _positive(name: str, value: int | None) -> None:
    """A value that is not said is Bridge's to find."""
    require(value is None or value >= 1, f"{name}: expected a number of at least 1, got {value}")
