"""The kinds of teacher on N GPUs: who sits where, what fits, how long a step takes, which bytes move.

student   (3·forward + 3·head)·tokens of the step / (GPUs · flops · training), x (1 + (pp - 1) / micro batches)
teacher   (forward)·teacher tokens / (GPUs · flops · forward), and its head's product on the student's GPUs
either    and what tensor parallelism sends over the links of a node; gradients are taken to travel meanwhile
colocated both one after the other; in a layout of its own, with the teacher's bubble, its hidden states over the
          network and what is offloaded to and from the host
remote    the slower of the two; cached: the student or the disk
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nemo_xtoken.config import Offload, RunConfig
from nemo_xtoken.planning.hardware import Hardware
from nemo_xtoken.planning.memory import (
    Memory,
    OwnLayout,
    added,
    number_bytes,
    own_layout_memory,
    student_memory,
    teacher_memory,
)
from nemo_xtoken.planning.shapes import Shape
from nemo_xtoken.teachers.cache.rows import Storage, bytes_per_token

SIZES = (1, 2, 4, 8)
OWN_LAYOUT = "colocated, own layout"
MOST_STAGES = 16


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One kind of teacher.

    student, teacher   (GPUs, tp, pp, dp); of a colocated teacher the GPUs are the student's
    offload            what of the teacher is in host memory; empty for nothing
    wire_bytes         hidden states that one step sends between GPUs
    disk_bytes         that one step reads
    why_not            why it can't be done; the numbers are then without meaning
    """

    kind: str
    student: tuple[int, int, int, int] = (0, 0, 0, 0)
    teacher: tuple[int, int, int, int] = (0, 0, 0, 0)
    offload: str = ""
    memory: Memory = field(default_factory=Memory)
    student_seconds: float = 0
    teacher_seconds: float = 0
    step_seconds: float = 0
    wire_bytes: float = 0
    disk_bytes: float = 0
    why_not: str = ""


@dataclass(frozen=True)
class Setting:
    """A run on `gpus` of some hardware. tokens: student and teacher tokens of a step, whose sequences are full."""

    config: RunConfig
    hardware: Hardware
    gpus: int
    student: Shape
    teachers: tuple[Shape, ...]

    @property
    def tokens(self) -> int:
        """Student tokens of a step."""
        return self.config.train.global_batch_size * self.config.data.student_sequence_length

    @property
    def teacher_tokens(self) -> int:
        """Tokens of each teacher in a step."""
        return self.config.train.global_batch_size * self.config.data.teacher_sequence_length

    @property
    def room(self) -> float:
        """Bytes of a GPU that a plan may fill."""
        return self.hardware.memory * self.hardware.usable

    def student_seconds(self, shape: Shape, dp: int) -> float:
        """Of forward, backward and loss: with each teacher's head, and another pass of the student's for each."""
        config, hardware = self.config, self.hardware
        gpus = shape.tp * shape.pp * config.parallel.context_parallel_size * dp
        flops = 3 * self.tokens * shape.forward_flops(config.data.student_sequence_length)
        flops += max(len(self.teachers), 1) * 3 * self.tokens * shape.head_flops
        flops += sum(self.teacher_tokens * teacher.head_flops for teacher in self.teachers)
        bubble = 1 + (shape.pp - 1) / max(config.train.global_batch_size // (config.train.micro_batch_size * dp), 1)
        sent = 3 * self.tokens / dp * shape.tensor_parallel_bytes(number_bytes(config))
        return (flops / (gpus * hardware.flops * hardware.training) + sent / hardware.links) * bubble

    def teacher_seconds(self, tp: int, pp: int, copies: int) -> float:
        """Of all teachers' forward passes, without their heads, on this many copies of each."""
        length, hardware = self.config.data.teacher_sequence_length, self.hardware
        shapes = [Shape(teacher.model, teacher.vocab_size, tp, pp) for teacher in self.teachers]
        flops = sum(self.teacher_tokens * shape.forward_flops(length) for shape in shapes)
        sent = sum(shape.tensor_parallel_bytes(number_bytes(self.config)) for shape in shapes)
        seconds = self.teacher_tokens / copies * sent / hardware.links
        return flops / (tp * pp * copies * hardware.flops * hardware.forward) + seconds

    def student_layouts(self, gpus: int) -> Iterator[tuple[Shape, int]]:
        """Layouts of the student on at most this many GPUs, the least cut first, with a dp that divides the batch."""
        cp, batch = self.config.parallel.context_parallel_size, self.config.train.global_batch_size
        for shape in _cuts(self.student, self.hardware.node_gpus):
            most = min(gpus // (shape.tp * shape.pp * cp), batch // self.config.train.micro_batch_size)
            dp = next((n for n in range(most, 0, -1) if batch % (n * self.config.train.micro_batch_size) == 0), 0)
            if dp:
                yield shape, dp


def _cuts(shape: Shape, node_gpus: int) -> Iterator[Shape]:
    """(tp, pp) that the model's heads and layers allow, by the number of GPUs, tp before pp."""
    model = shape.model
    groups = model.num_query_groups or model.num_attention_heads
    tps = [tp for tp in SIZES if tp <= node_gpus and groups % tp == 0 and model.num_attention_heads % tp == 0]
    pps = [pp for pp in range(1, MOST_STAGES + 1) if model.num_layers % pp == 0]
    for tp, pp in sorted(((tp, pp) for tp in tps for pp in pps), key=lambda cut: (cut[0] * cut[1], cut[1])):
        yield Shape(model, shape.vocab_size, tp, pp)


def _best(estimates: list[Estimate], kind: str, why_not: str) -> Estimate:
    return min(estimates, key=lambda e: (e.step_seconds, e.memory.total), default=Estimate(kind=kind, why_not=why_not))


def colocated(setting: Setting) -> Estimate:
    """The teachers on the student's ranks, with its tp, and whole on the last pipeline stage."""
    config, found = setting.config, list[Estimate]()
    cp = config.parallel.context_parallel_size
    for shape, dp in setting.student_layouts(setting.gpus):
        teachers = [Shape(teacher.model, teacher.vocab_size, shape.tp) for teacher in setting.teachers]
        if any((t.model.num_query_groups or t.model.num_attention_heads) % shape.tp for t in teachers):
            continue
        memory = student_memory(config, shape, list(setting.teachers), dp)
        for teacher in teachers:
            memory = added(memory, teacher_memory(config, teacher))
        if memory.total > setting.room:
            continue
        gpus = shape.tp * shape.pp * cp * dp
        student_seconds, teacher_seconds = (
            setting.student_seconds(shape, dp),
            setting.teacher_seconds(shape.tp, 1, dp * cp),
        )
        found.append(
            Estimate(
                kind="colocated",
                student=(gpus, shape.tp, shape.pp, dp),
                teacher=(gpus // shape.pp, shape.tp, 1, dp),
                memory=memory,
                student_seconds=student_seconds,
                teacher_seconds=teacher_seconds,
                step_seconds=student_seconds + teacher_seconds,
            )
        )
    return _best(found, "colocated", "student and teacher together do not fit into a GPU's memory in any layout")


def own_layout(setting: Setting) -> Estimate:
    """The teachers on the student's ranks, in a layout of their own and before the student, with the least offloading.

    A layout and an `offload` that the run's colocated teachers have are kept; teachers without take the same ones.
    """
    config, found = setting.config, list[Estimate]()
    cp = config.parallel.context_parallel_size
    for shape, dp in setting.student_layouts(setting.gpus):
        alone = student_memory(config, shape, list(setting.teachers), dp)
        if alone.total > setting.room:
            continue
        gpus = shape.tp * shape.pp * cp * dp
        for own in _own_layouts(setting, gpus):
            memory = own_layout_memory(config, alone, shape, dp, own)
            if memory.total <= setting.room:
                found.append(_own_layout(setting, shape, dp, own, memory))
    return _best(found, OWN_LAYOUT, "student and teacher take turns in no layout, not even with offload: both")


def _own_layout(setting: Setting, shape: Shape, dp: int, own: OwnLayout, memory: Memory) -> Estimate:
    config, hardware = setting.config, setting.hardware
    gpus = shape.tp * shape.pp * config.parallel.context_parallel_size * dp
    tp, pp = own.teachers[0].tp, own.teachers[0].pp
    bubble = 1 + (pp - 1) / max(config.train.global_batch_size // (config.train.micro_batch_size * own.dp), 1)
    width = sum(teacher.model.hidden_size for teacher in own.teachers)
    wire = setting.teacher_tokens * width * number_bytes(config) * shape.tp
    seconds = setting.teacher_seconds(tp, pp, own.dp * own.cp) * bubble + wire / (gpus * hardware.network)
    if own.offloads_hidden:
        # To the host on the teacher's side, and back and forth on the student's, where each rank has a part.
        seconds += 4 * setting.teacher_tokens * width * number_bytes(config) / (own.dp * own.cp) / hardware.host
    if own.offloads_parameters:
        sizes = (teacher.largest_stage * number_bytes(config) for teacher in own.teachers)
        seconds += sum(sizes) / hardware.host
    student_seconds = setting.student_seconds(shape, dp)
    return Estimate(
        kind=OWN_LAYOUT,
        student=(gpus, shape.tp, shape.pp, dp),
        teacher=(gpus, tp, pp, own.dp),
        offload=own.offload or "",
        memory=memory,
        student_seconds=student_seconds,
        teacher_seconds=seconds,
        step_seconds=student_seconds + seconds,
        wire_bytes=wire,
    )


def _own_layouts(setting: Setting, gpus: int) -> Iterator[OwnLayout]:
    """Cuts of all teachers that take this many GPUs, without and with offloading."""
    config = setting.config
    fixed = next((t for t in config.teachers if t.kind == "colocated" and t.parallel is not None), None)
    largest = max(setting.teachers, key=lambda teacher: teacher.parameters)
    cuts = ((cut.tp, cut.pp, 1) for cut in _cuts(largest, setting.hardware.node_gpus))
    offloads: tuple[Offload | None, ...] = (None, "hidden", "parameters", "both")
    if fixed is not None and fixed.parallel is not None:
        own = fixed.parallel
        sizes = (own.tensor_model_parallel_size, own.pipeline_model_parallel_size, own.context_parallel_size)
        cuts = iter([sizes])
        offloads = (fixed.offload,)
    for tp, pp, cp in cuts:
        dp = gpus // (tp * pp * cp)
        per_pass = config.train.micro_batch_size * dp
        if dp == 0 or dp * tp * pp * cp != gpus or config.train.global_batch_size % per_pass:
            continue
        shapes = tuple(Shape(teacher.model, teacher.vocab_size, tp, pp) for teacher in setting.teachers)
        if all(_can_be_cut(shape) for shape in shapes):
            yield from (OwnLayout(teachers=shapes, dp=dp, cp=cp, offload=offload) for offload in offloads)


def _can_be_cut(shape: Shape) -> bool:
    model = shape.model
    groups = model.num_query_groups or model.num_attention_heads
    return not (groups % shape.tp or model.num_attention_heads % shape.tp or model.num_layers % shape.pp)


def remote(setting: Setting) -> Estimate:
    """The teachers on GPUs of their own, a step ahead: as many as make a step shortest."""
    config, found = setting.config, list[Estimate]()
    unit = _least_teacher(setting)
    if unit is None:
        return Estimate(kind="remote", why_not="a teacher fits into no number of these GPUs")
    cp, most = config.parallel.context_parallel_size, setting.gpus - unit.tp * unit.pp
    for shape, dp in setting.student_layouts(most):
        for smaller in range(dp, 0, -1):
            if config.train.global_batch_size % (smaller * config.train.micro_batch_size):
                continue
            memory = student_memory(config, shape, list(setting.teachers), smaller)
            gpus = shape.tp * shape.pp * cp * smaller
            copies = (setting.gpus - gpus) // (unit.tp * unit.pp)
            if memory.total > setting.room or copies < 1:
                continue
            found.append(_remote(setting, shape, smaller, memory, unit, copies))
    return _best(found, "remote", "the student does not fit beside the GPUs that the teacher needs")


def _remote(setting: Setting, shape: Shape, dp: int, memory: Memory, unit: Shape, copies: int) -> Estimate:
    gpus = shape.tp * shape.pp * setting.config.parallel.context_parallel_size * dp
    teacher_gpus = unit.tp * unit.pp * copies
    student_seconds, teacher_seconds = (
        setting.student_seconds(shape, dp),
        setting.teacher_seconds(unit.tp, unit.pp, copies),
    )
    width = sum(teacher.model.hidden_size for teacher in setting.teachers)
    wire = setting.teacher_tokens * width * number_bytes(setting.config) * shape.tp  # once to each tp rank
    wire_seconds = wire / (max(copies * unit.tp, 1) * setting.hardware.network)
    return Estimate(
        kind="remote",
        student=(gpus, shape.tp, shape.pp, dp),
        teacher=(teacher_gpus, unit.tp, unit.pp, copies),
        memory=memory,
        student_seconds=student_seconds,
        teacher_seconds=teacher_seconds,
        step_seconds=max(student_seconds, teacher_seconds, wire_seconds),
        wire_bytes=wire,
    )


def _least_teacher(setting: Setting) -> Shape | None:
    """The smallest cut that holds the largest teacher."""
    if not setting.teachers:
        return None
    largest = max(setting.teachers, key=lambda teacher: teacher.parameters)
    for shape in _cuts(largest, setting.hardware.node_gpus):
        if teacher_memory(setting.config, shape).total <= setting.room and shape.tp * shape.pp < setting.gpus:
            return shape
    return None


def cached(setting: Setting, storage: Storage) -> Estimate:
    """No teacher's model: the student alone, and the disk."""
    config, found = setting.config, list[Estimate]()
    cp = config.parallel.context_parallel_size
    per_token = sum(bytes_per_token(storage, teacher.model.hidden_size) for teacher in setting.teachers)
    for shape, dp in setting.student_layouts(setting.gpus):
        memory = student_memory(config, shape, list(setting.teachers), dp)
        if memory.total > setting.room:
            continue
        gpus, disk = shape.tp * shape.pp * cp * dp, setting.teacher_tokens * per_token * shape.tp
        student_seconds = setting.student_seconds(shape, dp)
        found.append(
            Estimate(
                kind="cached",
                student=(gpus, shape.tp, shape.pp, dp),
                memory=memory,
                student_seconds=student_seconds,
                step_seconds=max(student_seconds, disk / (gpus * setting.hardware.disk)),
                disk_bytes=disk,
            )
        )
    return _best(found, "cached", "the student does not fit into a GPU's memory in any layout")
