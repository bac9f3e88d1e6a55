"""What the ranks of a remote teacher do: load it, read the samples that the student asks for, send hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_xtoken.config import BlendPart, RunConfig
from nemo_xtoken.data.batches import GlobalBatches
from nemo_xtoken.data.manifest import TeacherSide
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import blended_dataset, prepared_teachers
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import load_model
from nemo_xtoken.integrations.megatron.remote_teacher import (
    checkpoint_key,
    head_ids,
    ready_key,
    request_key,
    routes_of,
)
from nemo_xtoken.integrations.megatron.stopping import StopRequest
from nemo_xtoken.integrations.megatron.teacher_forward import TeacherTokens, build_teacher, forward_all
from nemo_xtoken.integrations.megatron.worlds import IDLE_PATIENCE, Job
from nemo_xtoken.teachers import SampleRange
from nemo_xtoken.teachers.link import Link
from nemo_xtoken.teachers.messages import REQUEST_NUMBERS, STOP, Header, checksum, pack_request, unpack_request
from nemo_xtoken.teachers.remote import connect
from nemo_xtoken.teachers.serving import RequestLine, Sender
from nemo_xtoken.types import DistillBatch

Numbered = tuple[int, DistillBatch]
"""A micro batch with its number in the request, over all data-parallel ranks."""


def serve(config: RunConfig, layout: Layout, job: Job, number: int) -> None:
    """Be one rank of teacher `number` until the student needs it no more.

    A signal does not end it: the student is told, saves, and lets the teacher go. Raises XTokenError where the student
    is gone, CheckpointError where the checkpoint is of another model.
    """
    with StopRequest().listening() as stop:
        answers = Answers(config, layout, job, number, stop)
        line = answers.request_line()
        dist.barrier()
        if layout.rank == 0:
            job.tell(ready_key(number), "yes")
        for request in count():
            samples = _agree(None if line is None else line.next(IDLE_PATIENCE.total_seconds()), layout)
            if samples == STOP:
                break
            answers.give(request, samples)
        answers.settle()


class Answers:
    """A teacher's model on this rank, the data, and the ways of its hidden states to the student's ranks."""

    def __init__(self, config: RunConfig, layout: Layout, job: Job, number: int, stop: StopRequest) -> None:
        self._config, self._layout, self._job, self._number, self._stop = config, layout, job, number, stop
        teacher, first = config.teachers[number], config.data.parts[0].path
        (side,) = prepared_teachers([teacher], PreparedData.open(first).manifest, first)
        self._patience, self._length = teacher.patience_seconds, config.data.teacher_length(side.name)
        checkpoint = Path(job.get(checkpoint_key(number)))
        self._line = self._open_line()
        self._sender = self._connect(side)
        self._model = self._load(side, checkpoint)
        self._data: dict[str, GlobalBatches] = {}

    def request_line(self) -> RequestLine | None:
        """The student's requests, on the teacher's first rank."""
        return self._line

    def give(self, request: int, samples: SampleRange) -> None:
        """Run the model over a request's samples; each micro batch's hidden states leave when they are there."""
        if self._sender is not None:
            # More than the step before is never on its way, even to a rank that is behind the others.
            self._sender.settle(request - 2)
        numbered = list(self._read(samples))

        def send(place: int, hidden: Tensor) -> None:
            number, batch = numbered[place]
            assert self._sender is not None
            self._sender.send(Header(request, number, checksum(batch.teacher_tokens), self._stop.heard), hidden)

        inputs = [TeacherTokens(batch.teacher_tokens, batch.teacher_position_ids) for _, batch in numbered]
        forward_all(self._model, self._layout, inputs, send)

    def settle(self) -> None:
        """Wait until all that was asked for has arrived."""
        if self._sender is not None:
            self._sender.settle_all()

    def _read(self, samples: SampleRange) -> Iterator[Numbered]:
        """This data-parallel rank's micro batches of a request."""
        batches, dp, train = self._batches(samples), self._layout.groups.dp, self._config.train
        per_step = train.global_batch_size // train.micro_batch_size
        for step in range(samples.count // train.global_batch_size):
            for i, batch in enumerate(next(batches)):
                yield step * per_step + i * dp.size() + dp.rank(), batch

    def _batches(self, samples: SampleRange) -> GlobalBatches:
        """The data that a request is for, standing at its first sample."""
        if samples.dataset not in self._data:
            config, dp = self._config, self._layout.groups.dp
            validation = BlendPart(path=config.data.validation_path or "")
            parts = config.data.parts if samples.dataset == "training" else [validation]
            dataset = blended_dataset(config.data, [config.teachers[self._number]], parts)
            train = config.train
            self._data[samples.dataset] = GlobalBatches(
                dataset, train.micro_batch_size, train.global_batch_size, dp.rank(), dp.size()
            )
        batches = self._data[samples.dataset]
        batches.consumed_samples = samples.first
        return batches

    def _open_line(self) -> RequestLine | None:
        if self._layout.rank:
            return None
        peer = self._job.name_of(self._job.student.last_stage[0])
        return RequestLine(Link(self._job.store, request_key(self._number), False, peer, self._patience))

    def _connect(self, side: TeacherSide) -> Sender | None:
        if not self._layout.is_last_stage:
            return None
        job, routes = self._job, routes_of(self._config, self._number, side, self._job)
        links = connect(routes, job.rank, job.store, f"teacher-{self._number}", job.name_of, self._patience)
        return Sender(routes, job.rank, links)

    def _load(self, side: TeacherSide, checkpoint: Path) -> GPTModel:
        config, layout, teacher = self._config, self._layout, self._config.teachers[self._number]
        ids = head_ids(config, self._number, side)
        dtype = torch.bfloat16 if config.train.bf16 else torch.float32
        model = build_teacher(teacher, layout, ids, self._length, dtype)
        load_model(model, checkpoint, f"teacher {teacher.name!r}", ids)
        return model


def _agree(samples: SampleRange | None, layout: Layout) -> SampleRange:
    """The request of the teacher's first rank, on all of its ranks."""
    message = torch.zeros(REQUEST_NUMBERS, dtype=torch.int64) if samples is None else pack_request(samples)
    message = message.to(layout.device)
    dist.broadcast(message, src=0)
    return unpack_request(message.cpu())
