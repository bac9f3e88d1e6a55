"""The loss's memory is the budget's, whatever the number of rows; the result does not depend on it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from nemo_xtoken.config import LossConfig
from nemo_xtoken.parallel import distillation_loss
from nemo_xtoken.parallel.blocks import Block
from nemo_xtoken.types import DistillBatch
from tests.problems import random_problem

PEAK = """
import json, sys
from pathlib import Path
import numpy as np, torch
from nemo_xtoken.config import LossConfig
from nemo_xtoken.parallel import distillation_loss
from nemo_xtoken.projection.matrix import ProjectionMatrix
from tests.benchmarks.bench_losses import one_to_one_batch

VOCAB, HIDDEN = 30_000, 8
torch.set_num_threads(1)
ids = np.arange(VOCAB, dtype=np.int32)[:, None]
matrix = ProjectionMatrix(ids, np.ones((VOCAB, 1), np.float32), VOCAB)
torch.manual_seed(0)
heads = [torch.randn(VOCAB, HIDDEN) for _ in range(2)]

def run(rows, config):
    hidden = torch.randn(rows, HIDDEN).requires_grad_()
    head = heads[0].clone().requires_grad_()
    terms = distillation_loss(hidden, head, torch.randn(rows, HIDDEN), heads[1], one_to_one_batch(rows, VOCAB), matrix,
                              config, ce_scale=1.0)
    terms.numerator.backward()

def peak():
    # Not getrusage's, which begins with the parent's peak.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

rows, settings = int(sys.argv[1]), json.loads(sys.argv[2])
run(2, LossConfig(**settings))
before = peak()
run(rows, LossConfig(**settings))
print(peak() - before)
"""


def peak_mib(rows: int, **settings: object) -> float:
    command = [sys.executable, "-c", PEAK, str(rows), json.dumps(settings)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("settings", [{}, {"teacher_top_k": 512}, {"mode": "h_kl", "sorted_cap": 64}])
def test_the_peak_stays_below_the_budget_however_many_rows_there_are(settings: dict[str, object]) -> None:
    """At 512 rows one [rows, V] tensor of either side is 59 MiB: a loss that keeps it does not stay below."""
    assert peak_mib(512, block_memory_mib=32, **settings) < 32 + 8


def test_a_block_of_all_rows_takes_more_than_the_budget() -> None:
    assert peak_mib(512, block_memory_mib=32, block_rows=512) > 100


def test_tiles_and_blocks_do_not_change_the_result() -> None:
    problem = random_problem(51, length=60, teacher_length=70)

    def gradient(config: LossConfig) -> torch.Tensor:
        hidden = problem.student_hidden.clone().requires_grad_()
        terms = distillation_loss(
            hidden, problem.student_head, problem.teacher_hidden, problem.teacher_head, problem.batch, problem.matrix,
            config, ce_scale=1.0,
        )  # fmt: skip
        return torch.autograd.grad(terms.numerator, hidden)[0]

    for mode in ("p_kl", "h_kl"):
        whole = gradient(LossConfig(mode=mode))
        for budget in (0.001, 0.01, 0.1):  # one chunk at a time, some, most
            torch.testing.assert_close(
                gradient(LossConfig(mode=mode, block_memory_mib=budget)), whole, rtol=1e-11, atol=1e-12
            )


def test_parts_hold_every_row_and_chunk_once_and_a_chunk_that_does_not_fit_is_a_part() -> None:
    batch: DistillBatch = random_problem(52).batch
    rows = Block.of(batch, batch.chunks.valid())
    parts = [part for part, _, _ in rows.split(lambda students, teachers: students <= 1 and teachers <= 1)]
    assert torch.cat([part.student_rows for part in parts]).tolist() == rows.student_rows.tolist()
    assert torch.cat([part.teacher_rows for part in parts]).tolist() == rows.teacher_rows.tolist()
    assert sum(len(part.chunks.mask) for part in parts) == len(rows.chunks.mask)
    assert max(len(part.chunks.mask) for part in parts) == 1
    assert max(len(part.student_rows) for part in parts) > 1
