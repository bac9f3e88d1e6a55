"""The chunk reduction as Triton programs against its torch reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_xtoken.kernels import mean_logits, mean_probabilities
from nemo_xtoken.kernels.choice import Implementation
from tests.kernel_tolerance import assert_near

DTYPES = (torch.float32, torch.bfloat16)
# Runs of one to four rows, gaps before, between and behind them.
START, END = torch.tensor([1, 2, 4, 9]), torch.tensor([2, 4, 8, 10])
ROWS = 12


def value_and_gradients(
    logits: Tensor, log_normaliser: Tensor | None, runs: tuple[Tensor, Tensor], implementation: Implementation
) -> list[Tensor]:
    """Means and gradients of a weighted sum of them, in float64 on the CPU; without a normaliser the teacher's side."""
    inputs = [x.detach().clone().requires_grad_() for x in (logits, log_normaliser) if x is not None]
    start, end = (x.to(logits.device) for x in runs)
    if log_normaliser is not None:
        means = mean_probabilities(inputs[0], inputs[1], start, end, 1.3, implementation=implementation)
    else:
        means = mean_logits(inputs[0], start, end, 1.3, implementation=implementation)
    weights = torch.linspace(-1, 2, means.numel(), device=means.device).view_as(means)
    gradients = torch.autograd.grad((weights * means).sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [x.dtype for x in inputs]
    return [x.detach().double().cpu() for x in (means, *gradients)]


def assert_equal_to_reference(logits: Tensor, runs: tuple[Tensor, Tensor], student: bool, device: str) -> None:
    normaliser = (logits.float() / 1.3).logsumexp(-1) if student else None
    values = value_and_gradients(
        logits.to(device), None if normaliser is None else normaliser.to(device), runs, "triton"
    )
    doubles = (logits.double(), None if normaliser is None else normaliser.double())
    expected = value_and_gradients(*doubles, runs, "torch")
    for value, right, dtype in zip(values, expected, [torch.float32, logits.dtype, torch.float32], strict=False):
        assert_near(value, right, dtype, device)


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [37, 2049, 1])
def test_value_and_gradients_equal_the_references(
    width: int, dtype: torch.dtype, student: bool, kernel_device: str
) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(ROWS, width)).to(dtype)
    assert_equal_to_reference(logits, (START, END), student, kernel_device)


@pytest.mark.parametrize("student", [True, False])
def test_no_run_no_row_and_no_column_are_no_error(student: bool, kernel_device: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for logits, runs in (
        (torch.randn(ROWS, 37), (none, none)),
        (torch.randn(0, 37), (none, none)),
        (torch.randn(ROWS, 0), (START, END)),
    ):
        normaliser = torch.zeros(len(logits)).to(kernel_device) if student else None
        means, gradient, *_ = value_and_gradients(logits.to(kernel_device), normaliser, runs, "triton")
        assert means.shape == (len(runs[0]), logits.shape[1])
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_rows_of_no_run_have_no_gradient_whatever_they_hold(kernel_device: str) -> None:
    logits = torch.zeros(ROWS, 5)
    logits[0], logits[8], logits[11] = torch.inf, torch.nan, -torch.inf
    normaliser = logits.logsumexp(-1)
    means, gradient, normaliser_gradient = value_and_gradients(
        logits.to(kernel_device), normaliser.to(kernel_device), (START, END), "triton"
    )
    assert means.isfinite().all()
    for outside in (0, 8, 10, 11):
        assert gradient[outside].tolist() == [0] * 5
        assert normaliser_gradient[outside] == 0
    assert gradient[1].abs().min() > 0


def test_the_mean_is_of_probabilities_for_the_student_and_of_logits_for_the_teacher(kernel_device: str) -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    start, end = torch.tensor([0], device=kernel_device), torch.tensor([2], device=kernel_device)
    logits, normaliser = probabilities.log().to(kernel_device), torch.zeros(2, device=kernel_device)
    student = mean_probabilities(logits, normaliser, start, end, implementation="triton")
    teacher = mean_logits(logits, start, end, implementation="triton")
    torch.testing.assert_close(student.cpu(), torch.tensor([[0.7, 0.3]]))
    torch.testing.assert_close(teacher.exp().cpu(), torch.tensor([[0.45**0.5, 0.05**0.5]]))


def test_logits_may_be_a_slice_or_transposed(kernel_device: str) -> None:
    logits = torch.randn(ROWS, 40).to(kernel_device)
    start, end = START.to(kernel_device), END.to(kernel_device)
    expected = mean_logits(logits[:, :37], start, end, implementation="torch")
    for view in (logits[:, :37], logits[:, :37].t().contiguous().t()):
        torch.testing.assert_close(mean_logits(view, start, end, implementation="triton"), expected)
