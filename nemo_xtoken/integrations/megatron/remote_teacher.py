"""A teacher on other ranks of the job, as the student's ranks set it up."""

from __future__ import annotations

from pathlib import Path

import torch

from nemo_xtoken.config import RunConfig
from nemo_xtoken.data.manifest import Side, TeacherSide
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds
from nemo_xtoken.integrations.megatron.teacher_head import load_head
from nemo_xtoken.integrations.megatron.worlds import Job
from nemo_xtoken.teachers.link import Link
from nemo_xtoken.teachers.protocol import HiddenFormat
from nemo_xtoken.teachers.remote import Receiver, RemoteSource, Requests, connect
from nemo_xtoken.teachers.routes import Routes


def head_ids(config: RunConfig, number: int, tokenizer: Side) -> HeadIds:
    """The ids of the head of teacher `number`."""
    return HeadIds(config.teachers[number].model.vocab_size or tokenizer.vocab_size, tokenizer.fingerprint)


def routes_of(config: RunConfig, number: int, side: TeacherSide, job: Job) -> Routes:
    """The ways of the hidden states of teacher `number`."""
    length = config.data.teacher_length(side.name)
    return Routes(job.student, job.teachers[number], config.train.micro_batch_size, length)


def request_key(number: int) -> str:
    """The name of the line to teacher `number`, from the first rank of the student's last stage to its first rank."""
    return f"requests-{number}"


def checkpoint_key(number: int) -> str:
    """Where the student tells teacher `number` which checkpoint it has taken the head from."""
    return f"checkpoint-{number}"


def ready_key(number: int) -> str:
    """Where teacher `number` tells that it can be asked."""
    return f"ready-{number}"


def remote_source(
    config: RunConfig, number: int, side: TeacherSide, layout: Layout, dtype: torch.dtype, job: Job
) -> tuple[RemoteSource, Path]:
    """The source of teacher `number`, and the checkpoint that it is of. Every rank of the student must call it."""
    teacher, groups = config.teachers[number], layout.groups
    head, checkpoint = load_head(teacher, layout, head_ids(config, number, side), dtype)
    if layout.rank == 0:
        job.tell(checkpoint_key(number), str(checkpoint))
    routes, patience = routes_of(config, number, side, job), teacher.patience_seconds
    receiver = requests = None
    if job.rank == job.student.last_stage[0]:
        peer = job.name_of(job.teachers[number].first_rank)
        requests = Requests(Link(job.store, request_key(number), True, peer, patience))
    if layout.is_last_stage:
        links = connect(routes, job.rank, job.store, f"teacher-{number}", job.name_of, patience)
        form = HiddenFormat(teacher.model.hidden_size, dtype, layout.device)
        receiver = Receiver(routes, job.rank, links, form, groups.tp)

    def wait_until_ready() -> None:
        job.get(ready_key(number))

    source = RemoteSource(config.train.micro_batch_size, groups.tp, head, receiver, requests, wait_until_ready)
    return source, checkpoint
