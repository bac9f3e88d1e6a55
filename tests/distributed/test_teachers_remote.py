"""Hidden states between forked ranks: in order, one step ahead and no more, own rows only, and a peer that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.errors import XTokenError
from nemo_xtoken.parallel import context_positions
from nemo_xtoken.teachers import SampleRange
from nemo_xtoken.teachers.link import Link
from nemo_xtoken.teachers.messages import HEADER_BYTES, STOP, Header, checksum
from nemo_xtoken.teachers.remote import HiddenFormat, Receiver, RemoteSource, Requests, connect
from nemo_xtoken.teachers.routes import Grid, Routes
from nemo_xtoken.teachers.serving import RequestLine, Sender
from nemo_xtoken.types import ChunkRows, DistillBatch
from tests.distributed.ranks import run_ranks

SEQUENCES, LENGTH, WIDTH = 2, 16, 3
PATIENCE = 40.0

pytestmark = pytest.mark.timeout(120)


def tokens_of(samples: SampleRange, number: int, seed: int = 0) -> torch.Tensor:
    """The teacher's tokens [b, t] of a micro batch, another for every sample."""
    first = samples.first + number * SEQUENCES + 1000 * (samples.dataset == "validation") + seed
    return first * LENGTH + torch.arange(SEQUENCES * LENGTH).view(SEQUENCES, LENGTH)


def hidden_of(tokens: torch.Tensor) -> torch.Tensor:
    """A model whose hidden states tell the token: [b*t, WIDTH]."""
    return tokens.flatten()[:, None] * torch.tensor([1.0, -1.0, 0.5])


def batch_of(tokens: torch.Tensor) -> DistillBatch:
    none = torch.empty(0, dtype=torch.int64)
    chunks = ChunkRows(
        student_start=none, student_end=none, teacher_start=none, teacher_end=none, mask=torch.empty(0).bool()
    )
    rest = dict.fromkeys(("student_tokens", "student_position_ids", "student_labels", "student_loss_mask"), none)
    return DistillBatch(**rest, teacher_tokens=tokens, teacher_position_ids=none, teacher_labels=none, chunks=chunks)


def held(tokens: torch.Tensor, cp_rank: int, cp_size: int) -> torch.Tensor:
    """The tokens of a context-parallel rank."""
    return tokens[:, context_positions(LENGTH, cp_rank, cp_size)]


Plan = list[SampleRange]


def stream(
    folder: Path, student: ParallelConfig, teacher: ParallelConfig, plan: Plan, seconds: tuple[float, float], seed: int
) -> Any:
    """Each rank's part of a run over `plan`: what it saw, its bytes and the times at which it began each step."""
    rank, store = dist.get_rank(), FileStore(str(folder / "links"))
    routes = Routes(Grid(student), Grid(teacher, student.world_size), SEQUENCES, LENGTH)
    names = [f"rank {i}" for i in range(dist.get_world_size())]
    tp_size = student.tensor_model_parallel_size
    tp_groups = [dist.new_group(list(range(first, first + tp_size))) for first in range(0, student.world_size, tp_size)]
    if rank in routes.student.ranks:
        return _study(routes, rank, store, names, tp_groups[rank // tp_size], plan, seconds[0])
    return _teach(routes, rank, store, names, seconds[1], seed)


def _study(
    routes: Routes, rank: int, store: Any, names: list[str], tp_group: Any, plan: Plan, seconds: float
) -> tuple[bool, int, list[float]]:
    requests = None
    leader, first = routes.student.last_stage[0], routes.teacher.first_rank
    if rank == leader:
        requests = Requests(Link(store, "requests", True, names[first], PATIENCE))
    links = connect(routes, rank, store, "states", names.__getitem__, PATIENCE)
    form = HiddenFormat(WIDTH, torch.float32, torch.device("cpu"))
    source = RemoteSource(
        SEQUENCES, tp_group, None, Receiver(routes, rank, links, form, tp_group), requests, lambda: None
    )
    source.begin(iter(plan))
    at, own = routes.student.place_of(rank), routes.student.parallel
    right, began = True, list[float]()
    for samples in plan:
        numbers = range(at.dp_rank, samples.count // SEQUENCES, own.data_parallel_size)
        batches = [batch_of(tokens_of(samples, number)) for number in numbers]
        began.append(time.monotonic())
        source.prepare(batches)
        for batch in [*batches, *batches]:  # a second pass over the step is as the first
            expected = hidden_of(held(batch.teacher_tokens, at.cp_rank, own.context_parallel_size))
            right &= torch.equal(source.hidden(batch), expected)
        time.sleep(seconds)
    source.close()
    assert source.receiver is not None
    return right, source.receiver.bytes_received, began


def _teach(routes: Routes, rank: int, store: Any, names: list[str], seconds: float, seed: int) -> list[float]:
    """A teacher whose ranks each read the requests of rank `first_rank` out of the store."""
    line = None
    if rank == routes.teacher.first_rank:
        line = RequestLine(Link(store, "requests", False, names[routes.student.last_stage[0]], PATIENCE))
    sender = Sender(routes, rank, connect(routes, rank, store, "states", names.__getitem__, PATIENCE))
    at, own = routes.teacher.place_of(rank), routes.teacher.parallel
    began: list[float] = []
    while True:
        request = len(began)
        if line is not None:
            store.set(f"request/{request}", " ".join(str(word) for word in astuple(line.next(PATIENCE))))
        dataset, first, count = store.get(f"request/{request}").decode().split()
        samples = SampleRange(dataset, int(first), int(count))
        if samples == STOP:
            break
        sender.settle(request - 2)
        began.append(time.monotonic())
        time.sleep(seconds)
        for number in range(at.dp_rank, samples.count // SEQUENCES, own.data_parallel_size):
            tokens = tokens_of(samples, number, seed)
            own_rows = hidden_of(held(tokens, at.cp_rank, own.context_parallel_size))
            sender.send(Header(request, number, checksum(tokens), 0), own_rows)
    sender.settle_all()
    return began


def sizes(tp_size: int = 1, cp_size: int = 1, dp_size: int = 1) -> ParallelConfig:
    return ParallelConfig(tensor_model_parallel_size=tp_size, context_parallel_size=cp_size, data_parallel_size=dp_size)


def run(
    folder: Path,
    student: ParallelConfig,
    teacher: ParallelConfig,
    plan: Plan,
    seconds: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> list[Any]:
    return run_ranks(student.world_size + teacher.world_size, stream, folder, student, teacher, plan, seconds, seed)


PLAN = [SampleRange("training", 16, 8), SampleRange("validation", 0, 16), SampleRange("training", 24, 8)]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(sizes(2), sizes()), (sizes(1, 2), sizes(2)), (sizes(1, 1, 2), sizes(1, 2))],
    ids=["tp2 from 1", "cp2 from tp2", "dp2 from cp2"],
)
def test_every_rank_has_its_rows_in_order_and_no_others_travel(
    tmp_path: Path, student: ParallelConfig, teacher: ParallelConfig
) -> None:
    results = run(tmp_path, student, teacher, PLAN)[: student.world_size]
    assert all(right for right, _, _ in results)
    rows = sum(samples.count for samples in PLAN) * LENGTH
    payload = rows * WIDTH * 4
    messages = sum(samples.count // SEQUENCES for samples in PLAN) * _pieces(student, teacher)
    assert sum(received for _, received, _ in results) == payload + messages * HEADER_BYTES
    # Each rank has an equal part: nobody receives what is another's.
    assert {received for _, received, _ in results} == {(payload + messages * HEADER_BYTES) // len(results)}


def _pieces(student: ParallelConfig, teacher: ParallelConfig) -> int:
    """Messages of one micro batch."""
    routes = Routes(Grid(student), Grid(teacher, student.world_size), SEQUENCES, LENGTH)
    return sum(len(routes.from_senders(0, rank)) for rank in routes.student.last_stage)


def steps(count: int) -> Plan:
    return [SampleRange("training", 4 * i, 4) for i in range(count)]


def test_a_teacher_works_on_the_next_step_while_the_student_works_and_never_further_ahead(tmp_path: Path) -> None:
    student, teacher = run(tmp_path, sizes(), sizes(), steps(5), seconds=(0.4, 0.0))
    began, taught = student[2], teacher
    for step in range(3):
        assert began[step] <= taught[step + 1] < began[step + 1], "the next step is taught during this one"
        assert taught[step + 2] >= began[step + 1], "and the one after it is not"


def test_data_that_differs_between_the_ranks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        XTokenError, match=r"rank 1 sent micro batch 0 of request 0 with tokens .*, expected 0 of 0 with"
    ):
        run(tmp_path, sizes(), sizes(), steps(2), seed=1)


def two_processes(folder: Path, first: Callable[[Path], Any], second: Callable[[Path], Any]) -> str:
    """What `first` says, while `second` runs beside it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    peer = context.Process(target=second, args=(folder,))
    speaker = context.Process(target=lambda: sender.send(first(folder)))
    peer.start()
    speaker.start()
    try:
        assert receiver.poll(60)
        return receiver.recv()
    finally:
        for process in (peer, speaker):
            process.kill()
            process.join()


def link(folder: Path, is_first: bool, patience: float) -> Link:
    return Link(FileStore(str(folder / "store")), "pair", is_first, "teacher 'qwen' (rank 3, on node2)", patience)


def receives_two(folder: Path, patience: float = 30.0) -> str:
    connection = link(folder, True, patience)
    transfers = [connection.receive(torch.empty(1)) for _ in range(2)]
    assert transfers[0].wait().item() == 7.0
    started = time.monotonic()
    try:
        transfers[1].wait()
    except XTokenError as error:
        return f"{error} [after {time.monotonic() - started:.1f} s]"
    return "no error"


def sends_one_and_dies(folder: Path) -> None:
    connection = link(folder, False, 30.0)
    connection.send(torch.tensor([7.0])).wait()
    os.kill(os.getpid(), signal.SIGKILL)


def sends_one_and_hangs(folder: Path) -> None:
    connection = link(folder, False, 30.0)
    connection.send(torch.tensor([7.0])).wait()
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_dead_peer_is_named_at_once_and_a_silent_one_when_patience_ends(tmp_path: Path) -> None:
    said = two_processes(tmp_path, receives_two, sends_one_and_dies)
    assert said.startswith("teacher 'qwen' (rank 3, on node2) is gone (Connection closed by peer")
    assert "the same command goes on from the latest checkpoint" in said
    assert float(said.rpartition("after ")[2].split()[0]) < 20
    silent = tmp_path / "silent"
    silent.mkdir()
    said = two_processes(silent, lambda folder: receives_two(folder, 2.0), sends_one_and_hangs)
    assert said.startswith("teacher 'qwen' (rank 3, on node2) has not answered for 2 s")


def test_a_peer_that_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match=r"teacher 'qwen' \(rank 3, on node2\) has not answered for 1 s"):
        link(tmp_path, True, 1.0)
