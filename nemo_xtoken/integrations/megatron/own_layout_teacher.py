"""A teacher on the student's ranks in a layout of its own: it runs over all micro batches of a step before the student.

Its last stage's hidden states move to the ranks that compare with them, and wait there, each tensor-parallel rank with
its part of the rows. Its head is loaded again, cut for the student's tensor-parallel group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken import parallel
from nemo_xtoken.config import RunConfig
from nemo_xtoken.data.manifest import TeacherSide
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.megatron.second_layout import SecondLayout
from nemo_xtoken.integrations.megatron.teacher_forward import TeacherTokens, build_teacher, forward_all
from nemo_xtoken.integrations.megatron.teacher_head import load_head
from nemo_xtoken.teachers import SampleRange, TeacherHead
from nemo_xtoken.teachers.exchange import Exchange
from nemo_xtoken.teachers.offload import HiddenStore, OffloadedParameters
from nemo_xtoken.teachers.parts import of_all_tp_ranks
from nemo_xtoken.teachers.protocol import HiddenFormat
from nemo_xtoken.teachers.routes import Grid, Routes
from nemo_xtoken.types import DistillBatch


class OwnLayoutSource:
    """A model of another layout than the student's, on its ranks.

    model    this rank's part of it
    own      the layout that it runs in
    head     [V_T/tp, h_T], this rank's shard of the head over the student's tp group; None without the student's head
    store    keeps the hidden states of a step
    offloaded  its parameters, where they are in host memory between steps
    """

    def __init__(
        self,
        model: GPTModel,
        own: SecondLayout,
        routes: Routes,
        student: Layout,
        head: TeacherHead | None,
        store: HiddenStore,
        offloaded: OffloadedParameters | None,
    ) -> None:
        self.model, self.store, self.offloaded = model, store, offloaded
        self._own, self._student, self._head = own, student, head
        width, dtype = model.config.hidden_size, model.config.params_dtype
        self.exchange = Exchange(routes, student.rank, HiddenFormat(width, dtype, student.device))
        self._part_sizes = routes.part_sizes()
        self._parts: list[Tensor] = []
        self._next = 0

    @property
    def waiting_bytes(self) -> int:
        """Of the step's hidden states that wait on this rank."""
        return sum(part.nbytes for part in self._parts)

    def head(self, pair: parallel.ShardedPair) -> TeacherHead:
        """The rows `pair.teacher_rows`, sent round the student's tp group; the rest of the shard is dropped."""
        assert self._head is not None
        head, self._head = self._head, None
        return head.cut(pair, self._student.groups.tp)

    def begin(self, announced: Iterator[SampleRange]) -> None:
        """Nothing is done before `prepare`."""

    def prepare(self, micro_batches: Sequence[DistillBatch]) -> None:
        """Run the model over all micro batches, those of all data-parallel ranks, and move what it gives."""
        inputs = self._of_all_ranks(micro_batches)
        held = self._forward(inputs)
        self._parts, self._next = [], 0
        for first in range(0, len(inputs), self.exchange.round):
            numbers = range(first, first + self.exchange.round)
            taken = {number: self.store.get(held.pop(number)) for number in numbers if number in held}
            self._parts += [self.store.put(part) for part in self.exchange.move(numbers, taken).values()]

    def hidden(self, batch: DistillBatch) -> Tensor:
        """[b*t/cp, h_T] of the next micro batch. One all-gather over the student's tp group."""
        part = self.store.get(self._parts[self._next % len(self._parts)])
        self._next += 1
        return of_all_tp_ranks(part, self._part_sizes, self._student.groups.tp)

    def close(self) -> None:
        """Nothing outlives the process."""

    def _forward(self, inputs: Sequence[TeacherTokens]) -> dict[int, Tensor]:
        """Hidden states by the number of the micro batch, where this rank has them."""
        held: dict[int, Tensor] = {}
        with self._own.active() as layout, self.offloaded.on_device() if self.offloaded else nullcontext():
            mine = range(layout.groups.dp.rank(), len(inputs), layout.groups.dp.size())

            def keep(place: int, hidden: Tensor) -> None:
                held[mine[place]] = self.store.put(hidden)

            forward_all(self.model, layout, [inputs[number] for number in mine], keep)
        return held

    def _of_all_ranks(self, micro_batches: Sequence[DistillBatch]) -> list[TeacherTokens]:
        """The teacher's tokens of the whole step, by the number of the micro batch. One all-gather over dp."""
        dp_group, device = self._student.groups.dp, self._student.device
        own = torch.stack(
            [torch.stack([batch.teacher_tokens, batch.teacher_position_ids]) for batch in micro_batches]
        ).to(device, torch.int32)
        gathered = own.new_empty(dp_group.size() * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(gathered, own, group=dp_group)
        all_ranks = gathered.unflatten(0, (dp_group.size(), len(own)))
        # Micro batch m of rank r is number m x dp_size + r.
        return [TeacherTokens(*entry) for entry in all_ranks.transpose(0, 1).flatten(0, 1).long().unbind()]


def own_layout_source(
    config: RunConfig, number: int, side: TeacherSide, student: Layout, dtype: torch.dtype
) -> tuple[OwnLayoutSource, Path]:
    """The source of teacher `number`, and the checkpoint that it is of. Every rank must call it.

    Raises CheckpointError where the checkpoint is missing or of another model or tokenizer.
    """
    teacher, length = config.teachers[number], config.data.teacher_length(side.name)
    assert teacher.parallel is not None
    ids = HeadIds(teacher.model.vocab_size or side.vocab_size, side.fingerprint)
    head, checkpoint = load_head(teacher, student, ids, dtype)
    own = SecondLayout(teacher.parallel, student)
    with own.active() as layout:
        model = build_teacher(teacher, layout, ids, length, dtype)
        load_model(model, checkpoint, f"teacher {teacher.name!r}", ids)
    routes = Routes(Grid(config.parallel), Grid(teacher.parallel), config.train.micro_batch_size, length)
    store = HiddenStore(student.device, offload=teacher.offload in ("hidden", "both"))
    offloaded = OffloadedParameters(model) if teacher.offload in ("parameters", "both") else None
    return OwnLayoutSource(model, own, routes, student, head, store, offloaded), checkpoint
