"""The student's side of a block, in torch and as Triton programs, against autograd through the pure formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_xtoken.config import Implementation
from nemo_xtoken.kernels import Runs, chunk_probabilities
from nemo_xtoken.kernels.chunk_probabilities import chunk_probabilities_reference
from nemo_xtoken.losses.vocabulary import WholeVocabulary

ROWS, WIDTH = 8, 37
LABELS = torch.tensor([3, -1, 36, 0, 5, -1, 7, 8])
# A gap, then runs of two, one and three rows.
SOME = Runs(torch.tensor([1, 3, 4]), torch.tensor([3, 4, 7]))
EVERY = Runs(torch.arange(ROWS), torch.arange(ROWS) + 1, is_every_row=True)
NONE = Runs(LABELS[:0], LABELS[:0])
COLUMNS = torch.tensor([0, 4, 5, 30, 36])


def of_device(runs: Runs, device: str) -> Runs:
    return Runs(runs.start.to(device), runs.end.to(device), runs.is_every_row)


def results(logits: Tensor, runs: Runs, columns: Tensor | None, implementation: Implementation | None) -> list[Tensor]:
    """Labels' log-probabilities, means and the gradient of a weighted sum of both; None is the reference."""
    device = str(logits.device)
    leaf, labels = logits.clone().requires_grad_(), LABELS.to(device)
    columns = None if columns is None else columns.to(device)
    runs, whole = of_device(runs, device), WholeVocabulary()
    if implementation is None:
        label_log, means = chunk_probabilities_reference(leaf, labels, runs, whole, columns, 1.3)
    else:
        label_log, means = chunk_probabilities(
            leaf, labels, runs, whole, columns=columns, temperature=1.3, implementation=implementation
        )
    weights = torch.linspace(-1, 2, means.numel(), device=device, dtype=logits.dtype).view_as(means)
    scale = torch.linspace(1, 3, ROWS, device=device, dtype=logits.dtype)
    (gradient,) = torch.autograd.grad((weights * means).sum() + (scale * label_log).sum(), leaf)
    return [x.detach().double().cpu() for x in (label_log, means, gradient)]


CASES = [(runs, columns) for runs in (SOME, EVERY, NONE) for columns in (None, COLUMNS, COLUMNS[:0])]


def exact_logits() -> Tensor:
    return 3 * torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("runs", "columns"), CASES)
def test_torch_equals_autograd(runs: Runs, columns: Tensor | None) -> None:
    logits = exact_logits()
    for actual, expected in zip(
        results(logits, runs, columns, "torch"), results(logits, runs, columns, None), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("runs", "columns"), CASES)
def test_triton_equals_autograd(runs: Runs, columns: Tensor | None, kernel_device: str) -> None:
    logits = exact_logits()
    actual = results(logits.float().to(kernel_device), runs, columns, "triton")
    for value, expected in zip(actual, results(logits, runs, columns, None), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_a_mean_without_its_length_would_differ() -> None:
    logits = exact_logits()
    shorter = Runs(SOME.start, torch.tensor([2, 4, 7]))
    assert (results(logits, SOME, None, "torch")[1] - results(logits, shorter, None, "torch")[1]).abs().max() > 1e-3
