"""Whether a layout's numbers come out even, told before a job is started."""

from __future__ import annotations

import math
from typing import Any

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer


def check_layout(config: DistillationContainer, world_size: int) -> int:
    """The data parallel size on this many ranks. Raises ConfigError for the first number that does not come out even.

    Checks ranks, batches, attention heads, layers, vocabularies and sequence lengths of the student, and of the
    teachers whose shapes are known without a download.
    """
    student, train = config.model, config.train
    ranks = student.tensor_model_parallel_size * student.pipeline_model_parallel_size * student.context_parallel_size
    _even("the number of ranks", world_size, "tensor x pipeline x context parallel size", ranks)
    dp_size = world_size // ranks
    samples = train.micro_batch_size * dp_size
    _even("train.global_batch_size", train.global_batch_size, "micro_batch_size x data parallel size", samples)
    data = config.dataset.data
    _check_model("the student", student, data.student_sequence_length)
    stages = student.pipeline_model_parallel_size
    if student.num_layers_in_first_pipeline_stage is None and student.num_layers_in_last_pipeline_stage is None:
        _even("num_layers of the student", student.num_layers, "pipeline_model_parallel_size", stages)
    for teacher in config.teachers:
        if teacher.provider is not None:
            length = data.teacher_length(teacher.prepared_as or teacher.name)
            _check_model(f"teacher {teacher.name!r}", teacher.provider, length, student)
    return dp_size


def _check_model(name: str, model: Any, sequence_length: int, layout: Any = None) -> None:
    layout = layout or model
    tp_size, cp_size = layout.tensor_model_parallel_size, layout.context_parallel_size
    of_tp = "tensor_model_parallel_size"
    _even(f"num_attention_heads of {name}", model.num_attention_heads, of_tp, tp_size)
    _even(f"num_query_groups of {name}", model.num_query_groups or model.num_attention_heads, of_tp, tp_size)
    if model.vocab_size is not None and not model.should_pad_vocab:
        _even(f"vocab_size of {name}", model.vocab_size, of_tp, tp_size)
    parts = tp_size if layout.sequence_parallel else 1
    divisor = parts if cp_size == 1 else cp_size * math.lcm(2, parts)
    _even(
        f"the sequence length of {name}",
        sequence_length,
        "the parts that cp and sequence parallelism cut",
        divisor,
    )


def _even(what: str, number: int, by: str, divisor: int) -> None:
    if number % divisor:
        raise ConfigError(f"{what}, {number}, is not divisible by {by}, {divisor}; change one of them")
