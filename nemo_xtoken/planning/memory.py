"""Bytes on one GPU. What is added up is documented at each function; nothing is left out that grows with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from nemo_xtoken.config import Offload, RunConfig
from nemo_xtoken.parallel.memory import BLOCK_SHARE, MIB, TEACHER_ROWS_PER_STUDENT_ROW
from nemo_xtoken.planning.shapes import Shape

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a rank of the last pipeline stage, the fullest one."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    hidden_states: float = 0
    loss_blocks: float = 0
    teacher_weights: float = 0
    teacher_heads: float = 0
    teacher_activations: float = 0
    teacher_hidden: float = 0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


def number_bytes(config: RunConfig) -> int:
    """Of a weight or a hidden number: 2 in bf16, else 4."""
    return 2 if config.train.bf16 else FP32


def student_memory(config: RunConfig, student: Shape, teachers: list[Shape], dp: int) -> Memory:
    """Without the teachers' models.

    weights       parameters of the stage x 2 (bf16) or 4
    gradients     x 4: Megatron's fp32 main gradients
    optimizer     x 8 (Adam's moments), x 12 in bf16 (with fp32 weights); over dp x cp with the distributed optimizer
    activations   of as many micro batches as the pipeline holds on the first stage, the most: pp
    hidden        of both sides of one micro batch
    loss blocks   see `loss_block_bytes`
    teacher_heads the rows of each teacher's head that this rank owns
    """
    size, cp = number_bytes(config), config.parallel.context_parallel_size
    sharded = dp * cp if config.parallel.use_distributed_optimizer else 1
    micro_batch, data = config.train.micro_batch_size, config.data
    tokens = micro_batch * data.student_sequence_length // cp
    teacher_tokens = micro_batch * data.teacher_sequence_length // cp
    in_flight = min(student.pp, max(config.train.global_batch_size // (micro_batch * dp), 1))
    hidden = tokens * student.model.hidden_size + sum(
        teacher_tokens * teacher.model.hidden_size for teacher in teachers
    )
    return Memory(
        weights=student.largest_stage * size,
        gradients=student.largest_stage * FP32,
        optimizer=student.largest_stage * (2 * FP32 + (FP32 if config.train.bf16 else 0)) / sharded,
        activations=student.activations(tokens, size) * in_flight,
        hidden_states=hidden * size,
        loss_blocks=max(
            (loss_block_bytes(config, student, teacher, i) for i, teacher in enumerate(teachers)), default=0
        ),
        teacher_heads=sum(teacher.vocab_size // student.tp * teacher.model.hidden_size * size for teacher in teachers),
    )


def loss_block_bytes(config: RunConfig, student: Shape, teacher: Shape, number: int) -> float:
    """Of the logits that the loss holds, and of the head's fp32 gradient, which it adds them up to.

    loss.block_memory_mib, a budget that does not grow with the sequences; with loss.block_rows the logits of so many
    student rows and twice as many teacher rows, and the rest of the budget. And V_S / tp x h_S x 4.
    """
    loss = config.teachers[number].loss
    budget = loss.block_memory_mib * MIB
    if loss.block_rows is not None:
        width = (student.rows + TEACHER_ROWS_PER_STUDENT_ROW * teacher.vocab_size) / student.tp
        budget = (1 - BLOCK_SHARE) * budget + FP32 * loss.block_rows * width
    return budget + FP32 * student.head


def teacher_memory(config: RunConfig, teacher: Shape) -> Memory:
    """A teacher's model on a rank: its weights, and one layer's activations of one micro batch; nothing is kept."""
    size = number_bytes(config)
    tokens = config.train.micro_batch_size * config.data.teacher_sequence_length
    one_layer = teacher.activations(tokens, size) * teacher.pp / teacher.model.num_layers
    return Memory(teacher_weights=teacher.largest_stage * size, teacher_activations=one_layer)


@dataclass(frozen=True, kw_only=True)
class OwnLayout:
    """Teachers on the student's ranks in a layout of their own.

    teachers         cut by it
    dp, cp           of it
    offload          as in the config of a teacher
    """

    teachers: tuple[Shape, ...]
    dp: int
    cp: int = 1
    offload: Offload | None = None

    @property
    def offloads_hidden(self) -> bool:
        """Whether hidden states wait in host memory."""
        return self.offload in ("hidden", "both")

    @property
    def offloads_parameters(self) -> bool:
        """Whether the models are in host memory while the student works."""
        return self.offload in ("parameters", "both")


def own_layout_memory(config: RunConfig, student: Memory, shape: Shape, dp: int, own: OwnLayout) -> Memory:
    """Student and teachers that take turns on a rank: of the two turns, that which needs more.

    teacher's turn  the student's weights, gradients, optimizer and part of the teachers' heads, each teacher's weights
                    (one teacher's where they are offloaded), one layer's activations of a micro batch, and hidden
                    states: the rows that a rank has of a step, tokens / (dp·cp) of the teachers' layout or its part of
                    those it compares with, tokens / (dp·cp·tp) of the student's, whichever is more
    student's turn  all of the student's, its part of the hidden states, and the teachers' weights, if they stay
    Offloaded hidden states count as those of one micro batch.
    """
    size, data, cp = number_bytes(config), config.data, config.parallel.context_parallel_size
    tokens = config.train.global_batch_size * data.teacher_sequence_length
    width = sum(teacher.model.hidden_size for teacher in own.teachers) * size
    waiting, computed = tokens / (dp * cp * shape.tp) * width, tokens / (own.dp * own.cp) * width
    if own.offloads_hidden:
        one = config.train.micro_batch_size * data.teacher_sequence_length * width
        waiting, computed = min(waiting, one / (cp * shape.tp)), min(computed, one / own.cp)
    models = [teacher_memory(config, teacher) for teacher in own.teachers]
    weights = [model.teacher_weights for model in models]
    of_teacher = replace(
        student,
        activations=0,
        loss_blocks=0,
        hidden_states=0,
        teacher_weights=max(weights) if own.offloads_parameters else sum(weights),
        teacher_activations=max(model.teacher_activations for model in models) / own.cp,
        teacher_hidden=max(waiting, computed),
    )
    stays = 0 if own.offloads_parameters else sum(weights)
    of_student = replace(student, teacher_weights=stays, teacher_hidden=waiting)
    return max(of_student, of_teacher, key=lambda memory: memory.total)


def added(a: Memory, b: Memory) -> Memory:
    """Both on one GPU."""
    return Memory(**{name: value + asdict(b)[name] for name, value in asdict(a).items()})
