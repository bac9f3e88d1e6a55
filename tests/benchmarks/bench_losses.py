"""The loss's cost: CPU-seconds beside a floor of the same run, peak memory, and growth with rows and tp.

    python -m tests.benchmarks.bench_losses [--part logits hidden small_heads numerals rows tp] [--repeats 3] [--json]

Llama-3.1 student, Qwen3 teacher: their W, 128,256 and 151,936 columns, float32, one thread. Every row is a chunk of one
token on either side, but in `numerals`: a text of sums, whose numerals the teacher splits. Each part is measured in a
process of its own, each peak in one more. Floors:
  logits  both log-sum-exps, the teacher's column maxima, one dense gradient written
  hidden  cross-entropy of the student's head, forward and backward, and the teacher head's product
Medians of CPU-seconds over the repeats, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nemo_xtoken import losses, projection, tokenizers
from nemo_xtoken.alignment import align
from nemo_xtoken.config import LossConfig
from nemo_xtoken.parallel import cut_head, distillation_loss, shard_pair, shard_projection
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import IGNORED_LABEL, ChunkRows, Chunks, DistillBatch
from tests.distributed.ranks import run_ranks

CHECKOUT = Path(__file__).resolve().parents[2]
TOKENIZERS = CHECKOUT / ".cache" / "tokenizers"
TEACHER_COLUMNS = 151936
BOUNDS = ("student_start", "student_end", "teacher_start", "teacher_end")
LOGITS_ROWS, HIDDEN_ROWS = 512, 256
GROWTH_ROWS = (512, 2048, 8192)
TP_SIZES = (1, 2, 4, 8)
TOP_K = LossConfig(teacher_top_k=8192)
LOGITS_LOSSES: dict[str, tuple[Any, LossConfig]] = {
    "p_kl, top 8192": (losses.projected_kl, TOP_K),
    "p_kl, all columns": (losses.projected_kl, LossConfig()),
    "h_kl": (losses.hybrid_kl, LossConfig()),
    "gold": (losses.gold, LossConfig()),
    "uld": (losses.uld, LossConfig()),
}
HIDDEN_CONFIGS = {
    "p_kl, all columns": LossConfig(),
    "p_kl, top 8192": TOP_K,
    "p_kl, chain": LossConfig(merge="first", chain=True),
    "h_kl": LossConfig(mode="h_kl"),
}
HEADLINES = {
    "p_kl_over_floor": ("logits", "p_kl, top 8192", "over_floor"),
    "h_kl_over_floor": ("logits", "h_kl", "over_floor"),
    "full_over_ce": ("hidden", "p_kl, all columns", "over_floor"),
    "top_k_over_ce": ("hidden", "p_kl, top 8192", "over_floor"),
    "values_per_row_tp8": ("tp", "tp 8", "values_per_row"),
}
PEAKS = {
    "logits_memory_mib": ("logits", ("p_kl, top 8192", "h_kl", "gold")),
    "hidden_memory_mib": ("hidden", ("p_kl, all columns", "p_kl, top 8192")),
}
NUMERALS_CONFIGS = {
    "p_kl, first": LossConfig(merge="first"),
    "p_kl, chain": LossConfig(merge="first", chain=True),
    "p_kl, mean": LossConfig(),
}
Ids = NDArray[np.int32]
Row = dict[str, float]
Part = dict[str, Row]
Run = Callable[[], object]


def real_pair() -> tuple[Tokenizer, Tokenizer]:
    """Llama-3.1's tokenizer and Qwen3's, fetched where they are not there."""
    for script in ("examples/fetch_tokenizers.py", "tests/fetch_test_tokenizers.py"):
        subprocess.run([sys.executable, script, str(TOKENIZERS)], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    student = tokenizers.load(f"{TOKENIZERS}/llama3.model?pattern=llama3")
    return student, tokenizers.load(f"{TOKENIZERS}/qwen.tiktoken?pattern=qwen")


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


def sums_batch(rows: int) -> DistillBatch:
    """A sequence of sums, with as many student tokens as rows."""
    rng = random.Random(0)
    pairs = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(rows)]
    student, teacher = (each.encode("".join(f"{a} + {b} = {a + b}\n" for a, b in pairs)) for each in real_pair())
    chunks = align(student, teacher)
    first = int(np.searchsorted(chunks.student_end, rows, side="right"))
    chunks = Chunks(*(column[1:first] for column in vars(chunks).values()))  # nothing predicts the first token
    of_student = _side("student", student.ids[: int(chunks.student_end[-1])])
    of_teacher = _side("teacher", teacher.ids[: int(chunks.teacher_end[-1])])
    bounds = {name: torch.as_tensor(getattr(chunks, name) - 1) for name in BOUNDS}
    mask = torch.ones(len(chunks)).bool()
    loss_mask = (of_student["student_labels"] != IGNORED_LABEL).float()
    chunk_rows = ChunkRows(**bounds, mask=mask)
    return DistillBatch(**of_student, **of_teacher, student_loss_mask=loss_mask, chunks=chunk_rows)


def _side(side: str, ids: Ids) -> dict[str, Any]:
    tokens = torch.as_tensor(ids, dtype=torch.int64)[None]
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[:, :-1] = tokens[:, 1:]
    named = {"tokens": tokens, "position_ids": torch.arange(tokens.shape[1])[None], "labels": labels}
    return {f"{side}_{name}": tensor for name, tensor in named.items()}


class Logits:
    """Logits of both sides, made once."""

    def __init__(self, matrix: ProjectionMatrix, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix, self.batch = matrix, one_to_one_batch(rows, matrix.student_vocab_size)
        self.student = torch.randn(rows, matrix.student_vocab_size, generator=generator).requires_grad_()
        self.teacher = torch.randn(rows, TEACHER_COLUMNS, generator=generator)

    @property
    def gradient_mib(self) -> float:
        return self.student.numel() * 4 / 2**20

    def floor(self) -> None:
        """What a loss on logits can't do without."""
        student = self.student.detach()
        _ = student.logsumexp(-1)
        _ = self.teacher.logsumexp(-1)
        _ = self.teacher.amax(0)
        _ = torch.zeros_like(student)

    def loss(self, function: Any, config: LossConfig) -> Run:
        """Forward and backward."""

        def run() -> None:
            self.student.grad = None
            function(self.student, self.teacher, self.batch, self.matrix, config).numerator.backward()

        return run


class Hidden:
    """Hidden states and heads, made once."""

    def __init__(self, matrix: ProjectionMatrix, batch: DistillBatch, student_hidden: int, teacher_hidden: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * 0.02

        self.matrix, self.batch = matrix, batch
        self.student_hidden = normal(batch.student_tokens.numel(), student_hidden).requires_grad_()
        self.student_head = normal(matrix.student_vocab_size, student_hidden).requires_grad_()
        self.teacher_hidden = normal(batch.teacher_tokens.numel(), teacher_hidden)
        self.teacher_head = normal(TEACHER_COLUMNS, teacher_hidden)

    @property
    def gradient_mib(self) -> float:
        return (self.student_hidden.numel() + self.student_head.numel()) * 4 / 2**20

    def floor(self) -> None:
        """Cross-entropy on full logits, forward and backward, and the teacher's logits."""
        logits = self.student_hidden @ self.student_head.t()
        loss = torch.nn.functional.cross_entropy(logits, self.batch.student_labels.flatten(), reduction="sum")
        torch.autograd.grad(loss, (self.student_hidden, self.student_head))
        _ = self.teacher_hidden @ self.teacher_head.t()

    def loss(self, config: LossConfig) -> Run:
        """Forward and backward with W and the head cut beforehand, as in training."""
        pair = shard_pair(self.matrix, config, self.student_head)
        head = cut_head(self.teacher_head, pair)

        def run() -> None:
            terms = distillation_loss(
                self.student_hidden, self.student_head, self.teacher_hidden, head, self.batch, pair, config,
                ce_scale=1.0,
            )  # fmt: skip
            torch.autograd.grad(terms.numerator, (self.student_hidden, self.student_head))

        return run


def cpu_seconds(function: Run, repeats: int) -> float:
    """Median over `repeats` after one warm-up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def forked(function: Callable[[], Any]) -> Any:
    """The function's result from a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def peak_mib(function: Run) -> float:
    """Growth of the resident set's peak in a forked process that calls the function once."""

    def growth() -> float:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    return forked(growth)


def measured(floor: Run, runs: dict[str, Run], gradient_mib: float, repeats: int) -> Part:
    """CPU-seconds, ratio to the floor and peak MiB above the gradients of everything."""
    peaks = {name: peak_mib(run) - gradient_mib for name, run in runs.items()}  # first: a timed run leaves a gradient
    floor_seconds = cpu_seconds(floor, repeats)
    part: Part = {"floor": {"cpu_seconds": floor_seconds, "over_floor": 1.0}}
    for name, run in runs.items():
        seconds = cpu_seconds(run, repeats)
        row = {"cpu_seconds": seconds, "over_floor": seconds / floor_seconds, "mib_above_gradients": peaks[name]}
        part[name] = row
    return part


def measure_logits(matrix: ProjectionMatrix, repeats: int) -> Part:
    logits = Logits(matrix, LOGITS_ROWS)
    runs = {name: logits.loss(*loss) for name, loss in LOGITS_LOSSES.items()}
    return measured(logits.floor, runs, logits.gradient_mib, repeats)


def measure_hidden(matrix: ProjectionMatrix, repeats: int, sizes: tuple[int, int] = (2048, 2560)) -> Part:
    hidden = Hidden(matrix, one_to_one_batch(HIDDEN_ROWS, matrix.student_vocab_size), *sizes)
    runs = {name: hidden.loss(config) for name, config in HIDDEN_CONFIGS.items()}
    return measured(hidden.floor, runs, hidden.gradient_mib, repeats)


def measure_small_heads(matrix: ProjectionMatrix, repeats: int) -> Part:
    return measure_hidden(matrix, repeats, (128, 128))


def measure_numerals(matrix: ProjectionMatrix, repeats: int) -> Part:
    """Sums of numbers, which the teacher splits, from hidden states of 128."""
    hidden = Hidden(matrix, sums_batch(HIDDEN_ROWS), 128, 128)
    runs = {name: hidden.loss(config) for name, config in NUMERALS_CONFIGS.items()}
    return measured(hidden.floor, runs, hidden.gradient_mib, repeats)


def measure_rows(matrix: ProjectionMatrix, repeats: int) -> Part:
    """Milliseconds a row from hidden states of 128, and peak memory, as rows grow."""
    part: Part = {}
    for rows in GROWTH_ROWS:
        hidden = Hidden(matrix, one_to_one_batch(rows, matrix.student_vocab_size), 128, 128)
        run = hidden.loss(LossConfig())
        memory = peak_mib(run) - hidden.gradient_mib
        seconds = cpu_seconds(run, 1 if rows > GROWTH_ROWS[0] else repeats)
        row = {"cpu_seconds": seconds, "ms_per_row": 1e3 * seconds / rows, "mib_above_gradients": memory}
        part[f"{rows} rows"] = row
    return part


def measure_tp(matrix: ProjectionMatrix, repeats: int) -> Part:
    """From hidden states of 128: the slowest rank's CPU-seconds, and the values of W^T p that a rank sends for a row in
    the forward: the mean over the ranks, as many as it receives, and the most that one sends or receives."""
    hidden = Hidden(matrix, one_to_one_batch(HIDDEN_ROWS, matrix.student_vocab_size), 128, 128)
    part: Part = {}
    for tp_size in TP_SIZES:
        ranks = run_ranks(tp_size, tp_rank, hidden, tp_size, repeats, timeout=300)
        part[f"tp {tp_size}"] = {
            "cpu_seconds": max(seconds for seconds, _ in ranks),
            "values_per_row": statistics.mean(sent for _, (sent, _) in ranks),
            "busiest_rank": float(max(max(values) for _, values in ranks)),
        }
    return part


def tp_rank(hidden: Hidden, tp_size: int, repeats: int) -> tuple[float, tuple[int, int]]:
    """One rank's CPU-seconds, and the values of W^T p that it sends and receives for a row."""
    group, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    head = hidden.student_head.detach().tensor_split(tp_size)[rank].clone().requires_grad_()
    pair = shard_projection(hidden.matrix, head, group)
    teacher_head = hidden.teacher_head.index_select(0, pair.teacher_rows)

    def run() -> None:
        terms = distillation_loss(
            hidden.student_hidden, head, hidden.teacher_hidden, teacher_head, hidden.batch, pair, LossConfig(), group,
            ce_scale=1.0,
        )  # fmt: skip
        torch.autograd.grad(terms.numerator, (hidden.student_hidden, head))

    return cpu_seconds(run, repeats), (int(np.sum(pair.send)), int(np.sum(pair.receive)))


PARTS: dict[str, Callable[[ProjectionMatrix, int], Part]] = {
    "logits": measure_logits,
    "hidden": measure_hidden,
    "small_heads": measure_small_heads,
    "numerals": measure_numerals,
    "rows": measure_rows,
    "tp": measure_tp,
}


def summary(parts: dict[str, Part]) -> dict[str, Any]:
    """The numbers to hold the loss to, of the parts that were measured, and all else under "parts"."""
    found = {name: parts[part][row][key] for name, (part, row, key) in HEADLINES.items() if part in parts}
    for name, (part, rows) in PEAKS.items():
        if part in parts:
            found[name] = max(parts[part][row]["mib_above_gradients"] for row in rows)
    return {**found, "parts": parts}


def show(parts: dict[str, Part]) -> None:
    """A table of each part."""
    for name, part in parts.items():
        keys = list(dict.fromkeys(key for row in part.values() for key in row))
        table = Table("", *(key.replace("_", " ") for key in keys), title=name.replace("_", " "))
        for label, row in part.items():
            table.add_row(label, *(f"{row[key]:.2f}" if key in row else "" for key in keys))
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments: Any = parser.parse_args()
    torch.set_num_threads(1)
    matrix = projection.build(*real_pair())
    parts = {name: forked(lambda name=name: PARTS[name](matrix, arguments.repeats)) for name in arguments.part}
    if arguments.json:
        print(json.dumps(summary(parts)))
    else:
        show(parts)


if __name__ == "__main__":
    main()
