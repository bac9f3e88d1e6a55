"""How well a remote teacher's work overlaps with the student's, and what its hidden states cost on the wire.

    python -m tests.benchmarks.bench_remote_teacher [--seconds 2] [--steps 6] [--hidden-size 2560]

Two processes on this machine, one the student's and one the teacher's, with the transport that a training uses. Neither
computes: both sleep, each micro batch its share of a step's `--seconds`, so that the result tells of the transport and
of the overlap and not of how the processes share this machine's cores. What a step of either takes alone is measured in
the same run, as a busy machine wakes sleepers late; the remote step is held against the slower of these.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.teachers import SampleRange
from nemo_xtoken.teachers.link import Link
from nemo_xtoken.teachers.messages import STOP, Header, checksum
from nemo_xtoken.teachers.remote import HiddenFormat, Receiver, RemoteSource, Requests, connect
from nemo_xtoken.teachers.routes import Grid, Routes
from nemo_xtoken.teachers.serving import RequestLine, Sender
from nemo_xtoken.types import ChunkRows, DistillBatch

LENGTH, MICRO_BATCHES, PATIENCE = 2048, 4, 120.0
ROUTES = Routes(Grid(ParallelConfig()), Grid(ParallelConfig(), 1), 1, LENGTH)
NAMES = ["the student", "the teacher"]
VOCABULARY, TOP_K = 151936, 8192


def batch_of(tokens: torch.Tensor) -> DistillBatch:
    """A micro batch of nothing but the teacher's tokens."""
    none = torch.empty(0, dtype=torch.int64)
    chunks = ChunkRows(
        student_start=none, student_end=none, teacher_start=none, teacher_end=none, mask=torch.empty(0).bool()
    )
    rest = dict.fromkeys(("student_tokens", "student_position_ids", "student_labels", "student_loss_mask"), none)
    return DistillBatch(**rest, teacher_tokens=tokens, teacher_position_ids=none, teacher_labels=none, chunks=chunks)


def tokens_of(step: int, number: int) -> torch.Tensor:
    """Tokens [1, LENGTH] of a micro batch."""
    return torch.full((1, LENGTH), step * MICRO_BATCHES + number)


def alone(seconds: float, steps: int) -> float:
    """Mean seconds of a step without the other side."""
    started = time.monotonic()
    for _ in range(steps * MICRO_BATCHES):
        time.sleep(seconds / MICRO_BATCHES)
    return (time.monotonic() - started) / steps


def study(folder: Path, options: argparse.Namespace, student_seconds: float) -> tuple[float, float, float]:
    """The student: mean seconds of a step after the first two, and alone; bytes received per token of the teacher."""
    by_itself = alone(student_seconds, options.steps - 2)
    store = FileStore(str(folder / "links"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/alone", rank=0, world_size=1)
    links = connect(ROUTES, 0, store, "states", NAMES.__getitem__, PATIENCE)
    form = HiddenFormat(options.hidden_size, torch.bfloat16, torch.device("cpu"))
    group = dist.group.WORLD
    assert group is not None
    receiver = Receiver(ROUTES, 0, links, form, group)
    requests = Requests(Link(store, "requests", True, NAMES[1], PATIENCE))
    source = RemoteSource(1, group, None, receiver, requests, lambda: None)
    source.begin(SampleRange("training", step * MICRO_BATCHES, MICRO_BATCHES) for step in range(options.steps))
    began: list[float] = []
    for step in range(options.steps):
        began.append(time.monotonic())
        batches = [batch_of(tokens_of(step, number)) for number in range(MICRO_BATCHES)]
        source.prepare(batches)
        for batch in batches:
            source.hidden(batch)
            time.sleep(student_seconds / MICRO_BATCHES)
    began.append(time.monotonic())
    source.close()
    num_tokens = options.steps * MICRO_BATCHES * LENGTH
    return (began[-1] - began[2]) / (options.steps - 2), by_itself, receiver.bytes_received / num_tokens


def teach(folder: Path, options: argparse.Namespace, teacher_seconds: float) -> float:
    """The teacher: mean seconds of a step alone."""
    by_itself = alone(teacher_seconds, options.steps - 2)
    store = FileStore(str(folder / "links"))
    sender = Sender(ROUTES, 1, connect(ROUTES, 1, store, "states", NAMES.__getitem__, PATIENCE))
    line = RequestLine(Link(store, "requests", False, NAMES[0], PATIENCE))
    hidden = torch.zeros(LENGTH, options.hidden_size, dtype=torch.bfloat16)
    request = 0
    while (samples := line.next(PATIENCE)) != STOP:
        sender.settle(request - 2)
        for number in range(MICRO_BATCHES):
            time.sleep(teacher_seconds / MICRO_BATCHES)
            tokens = tokens_of(samples.first // MICRO_BATCHES, number)
            sender.send(Header(request, number, checksum(tokens), 0), hidden)
        request += 1
    sender.settle_all()
    return by_itself


def measure(options: argparse.Namespace, student_seconds: float, teacher_seconds: float) -> tuple[float, ...]:
    """Seconds of a step of the student alone, of the teacher alone and of both; bytes per token."""
    context: Any = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = [lambda: study(folder, options, student_seconds), lambda: teach(folder, options, teacher_seconds)]
        processes = [
            context.Process(target=lambda send=send, side=side: send.send(side()))
            for (_, send), side in zip(ends, work, strict=True)
        ]
        for process in processes:
            process.start()
        (step, student, per_token), teacher = (receive.recv() for receive, _ in ends)
        for process in processes:
            process.join()
    return student, teacher, step, per_token


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=2560)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("seconds of a step: student alone  teacher alone  one after the other  remote  / the slower")
    per_token = 0.0
    for share in (1.0, 0.5, 1.5):
        student, teacher, step, per_token = measure(options, options.seconds, share * options.seconds)
        ratio = step / max(student, teacher)
        print(f"{student:32.2f}  {teacher:13.2f}  {student + teacher:19.2f}  {step:6.2f}  {ratio:12.2f}", flush=True)
    hidden = 2 * options.hidden_size
    print(f"bytes per token on the wire: {per_token:.2f}, of which hidden state (bf16) {hidden}")
    print(f"bf16 logits of {VOCABULARY} tokens: {2 * VOCABULARY}; top {TOP_K} of them with their ids: {6 * TOP_K}")


if __name__ == "__main__":
    main()
