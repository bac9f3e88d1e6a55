"""CPU-seconds and memory of the loss from hidden states, beside plain cross-entropy of the same head, in one run.

    python -m tests.benchmarks.bench_losses [--rows 256] [--hidden 2048 2560] [--repeats 3] [--json]

The vocabularies and W are cl100k's and Qwen's. Every row is in a chunk of one token on either side. `floor` is what no
loss can do without: plain cross-entropy of the student's head, forward and backward, and the teacher head's product.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nemo_xtoken import projection, tokenizers
from nemo_xtoken.config import LossConfig
from nemo_xtoken.parallel import cut_head, distillation_loss, shard_pair
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.types import ChunkRows, DistillBatch

CHECKOUT = Path(__file__).resolve().parents[2]
TOKENIZERS = CHECKOUT / ".cache" / "tokenizers"
CONFIGS = {
    "p_kl, all columns": LossConfig(),
    "p_kl, top 8192": LossConfig(teacher_top_k=8192),
    "h_kl": LossConfig(mode="h_kl"),
    "gold": LossConfig(mode="gold"),
}


def real_matrix() -> ProjectionMatrix:
    """W of cl100k and Qwen."""
    command = [sys.executable, str(CHECKOUT / "examples" / "fetch_tokenizers.py"), str(TOKENIZERS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    student = tokenizers.load(f"{TOKENIZERS}/cl100k_base.tiktoken?pattern=cl100k")
    return projection.build(student, tokenizers.load(f"{TOKENIZERS}/qwen.tiktoken?pattern=qwen"))


def one_to_one_batch(rows: int, vocab: int) -> DistillBatch:
    """One sequence in which every row is a chunk."""
    at, ids = torch.arange(rows), torch.randint(0, vocab, (1, rows), generator=torch.Generator().manual_seed(0))
    chunks = ChunkRows(
        student_start=at, student_end=at + 1, teacher_start=at, teacher_end=at + 1, mask=torch.ones(rows).bool()
    )
    return DistillBatch(
        student_tokens=ids,
        student_position_ids=at[None],
        student_labels=ids,
        student_loss_mask=torch.ones(1, rows),
        teacher_tokens=ids,
        teacher_position_ids=at[None],
        teacher_labels=ids,
        chunks=chunks,
    )


class Shapes:
    """Hidden states and heads of one setting, made once."""

    def __init__(self, matrix: ProjectionMatrix, rows: int, student_hidden: int, teacher_hidden: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * 0.02

        self.matrix, self.batch = matrix, one_to_one_batch(rows, matrix.student_vocab_size)
        self.student_hidden = normal(rows, student_hidden).requires_grad_()
        self.student_head = normal(matrix.student_vocab_size, student_hidden).requires_grad_()
        self.teacher_hidden = normal(rows, teacher_hidden)
        self.teacher_head = normal(matrix.teacher_vocab_size, teacher_hidden)

    def plain_cross_entropy(self) -> None:
        """Forward and backward on full logits."""
        logits = self.student_hidden @ self.student_head.t()
        loss = torch.nn.functional.cross_entropy(logits, self.batch.student_labels.flatten(), reduction="sum")
        torch.autograd.grad(loss, (self.student_hidden, self.student_head))

    def teacher_product(self) -> None:
        """The teacher's logits."""
        _ = self.teacher_hidden @ self.teacher_head.t()

    def distillation(self, config: LossConfig) -> Callable[[], None]:
        """Forward and backward of the loss with W and the head cut beforehand, as in training."""
        pair = shard_pair(self.matrix, config, self.student_head)
        head = cut_head(self.teacher_head, pair)

        def run() -> None:
            terms = distillation_loss(
                self.student_hidden,
                self.student_head,
                self.teacher_hidden,
                head,
                self.batch,
                pair,
                config,
                ce_scale=1.0,
            )
            torch.autograd.grad(terms.numerator, (self.student_hidden, self.student_head))

        return run


def cpu_seconds(function: Callable[[], None], repeats: int) -> float:
    """Median over `repeats` after one warm-up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def peak_mib(function: Callable[[], None]) -> float:
    """Growth of the resident set's peak in a forked process that calls the function once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    process = context.Process(target=child)
    process.start()
    growth = receiver.recv()
    process.join()
    return growth


def measure(shapes: Shapes, repeats: int) -> dict[str, dict[str, float]]:
    """CPU-seconds, ratio to the floor and peak MiB of everything."""
    floor = cpu_seconds(shapes.plain_cross_entropy, repeats) + cpu_seconds(shapes.teacher_product, repeats)
    gradients = (shapes.student_hidden.numel() + shapes.student_head.numel()) * 4 / 2**20
    results = {"floor": {"cpu_seconds": floor, "over_floor": 1.0, "mib_above_gradients": float("nan")}}
    for name, config in CONFIGS.items():
        run = shapes.distillation(config)
        seconds = cpu_seconds(run, repeats)
        results[name] = {
            "cpu_seconds": seconds,
            "over_floor": seconds / floor,
            "mib_above_gradients": peak_mib(run) - gradients,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--hidden", type=int, nargs=2, default=[2048, 2560], metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments: Any = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(Shapes(real_matrix(), arguments.rows, *arguments.hidden), arguments.repeats)
    if arguments.json:
        print(json.dumps(results))
        return
    table = Table("loss", "CPU-s", "x floor", "MiB above gradients", title=f"{arguments.rows} rows")
    for name, row in results.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("cpu_seconds", "over_floor", "mib_above_gradients")))
    Console().print(table)


if __name__ == "__main__":
    main()
