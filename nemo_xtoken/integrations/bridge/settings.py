"""What a config has to say for distillation to be right, whatever it said before."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from megatron.bridge.models.gemma.gemma3_provider import Gemma3ModelProvider

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.data.padding import length_step, rounded_up, token_multiple
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.bridge.dataset import TeacherInData
from nemo_xtoken.integrations.bridge.limits import refuse
from nemo_xtoken.integrations.bridge.models import adapt
from nemo_xtoken.integrations.bridge.placement import device
from nemo_xtoken.integrations.bridge.precision import precision_of
from nemo_xtoken.integrations.bridge.versions import validation_of
from nemo_xtoken.integrations.megatron.fp8_backend import token_multiple_of


def settle(config: DistillationContainer) -> None:
    """Set in place what the loss depends on; a second call changes nothing. Raises ConfigError for what can't be done.

    Gradients are summed over ranks and micro batches and divided once by the tokens of the global batch, sequences have
    the lengths of the data, or what FP8 needs above them, and layers take the masks of packed documents.
    """
    refuse(config)
    model, data = config.model, config.dataset
    model.calculate_per_token_loss = True
    config.ddp.average_in_collective = False
    # An import switches it off, and megatron-core then does not mark the weights as cut over tp: of each only the first
    # rank's part would count in the gradient's norm, and so in clipping.
    model.perform_initialization = True
    if isinstance(model, Gemma3ModelProvider):
        # Bridge leaves it out, though the layers have norms of queries and keys: megatron-core would not add up their
        # gradients over tp, and the norms of the ranks would part.
        model.qk_layernorm = True
    data.length_steps = length_steps(config)
    model.seq_length = rounded_up(data.data.student_sequence_length, data.length_steps[0])
    data.teachers = tuple(TeacherInData(teacher.name, teacher.prepared_as) for teacher in config.teachers)
    data.validation_samples = validation_of(config).eval_iters * config.train.global_batch_size
    if config.checkpoint.pretrained_checkpoint is not None:
        # It lacks the balance; what else it lacks is told when the model is loaded.
        config.checkpoint.dist_ckpt_strictness = "log_unexpected"
    where = device()
    if where.type == "cpu":
        _settle_for_cpu(config)
    adapt(model, where)


def length_steps(config: DistillationContainer) -> list[int]:
    """What the lengths of sequences must be multiples of for the FP8 of the student, and of each teacher."""
    model = config.model
    tp_size = model.tensor_model_parallel_size
    cut = model.sequence_parallel or any(teacher.options.get("sequence_parallel") for teacher in config.teachers)
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp_size,
        context_parallel_size=model.context_parallel_size,
        sequence_parallel=bool(cut) and tp_size > 1,
    )
    multiples = [token_multiple_of(precision_of(config)), *(token_multiple(teacher.fp8) for teacher in config.teachers)]
    return [length_step(config.train.micro_batch_size, parallel, multiple) for multiple in multiples]


def _settle_for_cpu(config: DistillationContainer) -> None:
    data: Any = config.dataset
    config.dist.distributed_backend = "gloo"
    config.checkpoint.async_save = False
    data.pin_memory = False


def check_vocabulary(config: DistillationContainer) -> None:
    """Raises ConfigError where the data has ids that the student's head has not."""
    ids, rows = config.dataset.manifest().student.vocab_size, config.model.vocab_size
    if rows is not None and rows < ids:
        raise ConfigError(
            f"model.vocab_size {rows} is less than the {ids} ids of the data's student tokenizer; prepare the data "
            "with the student's own tokenizer"
        )
