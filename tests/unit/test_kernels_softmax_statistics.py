"""The softmax statistics as Triton programs against their torch reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken.kernels import SoftmaxStatistics, softmax_statistics
from nemo_xtoken.kernels.choice import Implementation
from nemo_xtoken.losses.vocabulary import WholeVocabulary
from tests.kernel_tolerance import assert_near

DTYPES = (torch.float32, torch.bfloat16)


def weighted_sum(statistics: SoftmaxStatistics) -> Tensor:
    """A scalar in which every differentiable value has a weight of its own."""
    values = [statistics.total, statistics.label, statistics.chosen]
    parts = [(torch.linspace(-1, 2, x.numel(), device=x.device).view_as(x) * x).sum() for x in values if x is not None]
    return torch.stack(parts).sum()


def values_and_gradient(
    logits: Tensor, implementation: Implementation, *arguments: Any
) -> tuple[list[Tensor | None], Tensor]:
    """All values and the gradient of `weighted_sum`, in float64 on the CPU."""
    logits = logits.detach().clone().requires_grad_()
    statistics = softmax_statistics(logits, *arguments, implementation=implementation)
    (gradient,) = torch.autograd.grad(weighted_sum(statistics), logits)
    assert gradient.dtype == logits.dtype
    values = [statistics.maximum, statistics.total, statistics.label, statistics.chosen]
    return [None if x is None else x.detach().double().cpu() for x in values], gradient.double().cpu()


def assert_equal_to_reference(
    logits: Tensor, columns: Tensor | None, labels: Tensor | None, temperature: float, device: str
) -> None:
    moved = (None if x is None else x.to(device) for x in (columns, labels))
    values, gradient = values_and_gradient(logits.to(device), "triton", *moved, temperature)
    expected, expected_gradient = values_and_gradient(logits.double(), "torch", columns, labels, temperature)
    for value, right in zip(values, expected, strict=True):
        assert_near(value, right, torch.float32, device)
    assert_near(gradient, expected_gradient, logits.dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "chosen"),
    [(5, 37, 11), (2, 9001, 1003), (3, 1, 1), (3, 37, 0), (0, 37, 5), (2, 0, 0)],
)
def test_values_and_gradient_equal_the_references(
    rows: int, width: int, chosen: int, dtype: torch.dtype, kernel_device: str
) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(rows, width)).to(dtype)
    labels = torch.randint(-1, width, (rows,)) if width else torch.full((rows,), -100)
    assert_equal_to_reference(logits, torch.randperm(width)[:chosen], labels, 1.7, kernel_device)


@pytest.mark.parametrize(("with_columns", "with_labels"), [(False, False), (True, False), (False, True)])
def test_columns_and_labels_may_each_be_left_out(with_columns: bool, with_labels: bool, kernel_device: str) -> None:
    columns = torch.tensor([3, 30]) if with_columns else None
    labels = torch.tensor([0, 36, -1]) if with_labels else None
    assert_equal_to_reference(torch.randn(3, 37), columns, labels, 1.0, kernel_device)


def test_the_log_sum_exp_is_that_of_torch(kernel_device: str) -> None:
    logits = (20 * torch.randn(3, 5000)).to(kernel_device).requires_grad_()
    log_sum_exp = softmax_statistics(logits, implementation="triton").log_sum_exp(WholeVocabulary())
    torch.testing.assert_close(log_sum_exp, logits.logsumexp(-1))
    (gradient,) = torch.autograd.grad(log_sum_exp.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1).detach(), rtol=1e-4, atol=1e-7)


def test_a_shard_without_columns_adds_nothing_to_the_others(kernel_device: str) -> None:
    empty = softmax_statistics(torch.empty(2, 0, device=kernel_device), implementation="triton")
    assert empty.maximum.tolist() == [-torch.inf, -torch.inf]
    assert empty.total.tolist() == [0, 0]
    shards = torch.randn(2, 37, device=kernel_device).split([30, 7], dim=1)
    parts = [*(softmax_statistics(shard, implementation="triton") for shard in shards), empty]
    maximum = torch.stack([part.maximum for part in parts]).amax(0)
    total = sum(part.total * (part.maximum - maximum).exp() for part in parts)
    torch.testing.assert_close(maximum + torch.as_tensor(total).log(), torch.cat(shards, dim=1).logsumexp(-1))


def test_masked_logits_count_nothing_and_large_ones_do_not_overflow(kernel_device: str) -> None:
    logits = torch.full((3, 5000), -torch.inf)
    logits[1, 4999] = 3e4
    logits[2, :2] = torch.tensor([-3e4, -3e4])
    statistics = softmax_statistics(logits.to(kernel_device), implementation="triton")
    assert statistics.maximum.tolist() == [-torch.inf, 3e4, -3e4]
    assert statistics.total.tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_not_finite_is_not_hidden(bad: float, kernel_device: str) -> None:
    logits = torch.zeros(1, 5000)
    logits[0, 17] = bad
    assert softmax_statistics(logits.to(kernel_device), implementation="triton").total.isnan().all()


def test_logits_may_be_a_slice_or_transposed(kernel_device: str) -> None:
    logits = torch.randn(3, 40).to(kernel_device)
    expected = softmax_statistics(logits[:, :37].clone(), implementation="torch")
    for view in (logits[:, :37], logits[:, :37].t().contiguous().t()):
        statistics = softmax_statistics(view, implementation="triton")
        torch.testing.assert_close(statistics.maximum, expected.maximum)
        torch.testing.assert_close(statistics.total, expected.total)
