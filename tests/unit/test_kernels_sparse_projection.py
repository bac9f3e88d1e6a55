"""W^T p as a Triton program against its torch reference in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nemo_xtoken.kernels import ScatterPlan, scatter_columns
from nemo_xtoken.kernels.sparse_projection import SHORT, scatter_columns_reference
from tests.kernel_tolerance import assert_near

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """x [c, in] and entries in random order, with the gradient that comes back from y."""

    x: Tensor
    rows: Tensor
    columns: Tensor
    weights: Tensor
    num_columns: int
    y_grad: Tensor

    def run(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """y and the gradients of x and of the weights by the Triton programs, in float64 on the CPU."""
        x = self.x.to(device, dtype, copy=True).requires_grad_()
        weights = self.weights.to(device, copy=True).requires_grad_()
        rows, columns = self.rows.to(device), self.columns.to(device)
        y = scatter_columns(x, rows, columns, weights, self.num_columns, implementation="triton")
        assert y.dtype == dtype
        y.backward(self.y_grad.to(device, dtype))
        assert x.grad is not None
        assert weights.grad is not None
        assert (x.grad.dtype, weights.grad.dtype) == (dtype, torch.float32)
        return y.detach().double().cpu(), x.grad.double().cpu(), weights.grad.double().cpu()

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The reference in float64 on inputs as the dtype holds them."""
        x = self.x.to(dtype).double().requires_grad_()
        weights = self.weights.double().requires_grad_()
        y = scatter_columns_reference(x, self.rows, self.columns, weights, self.num_columns)
        y.backward(self.y_grad.to(dtype).double())
        assert x.grad is not None
        assert weights.grad is not None
        return y.detach(), x.grad, weights.grad


def random_case(c: int, num_rows: int, num_columns: int, entries: int, seed: int = 0) -> Case:
    """A third of the rows and of the columns has no entry, where there is more than one."""
    torch.manual_seed(seed)
    return Case(
        x=torch.randn(c, num_rows),
        rows=torch.randint(max(1, 2 * num_rows // 3), (entries,)),
        columns=torch.randint(max(1, 2 * num_columns // 3), (entries,)),
        weights=torch.rand(entries),
        num_columns=num_columns,
        y_grad=torch.randn(c, num_columns),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("c", "num_rows", "num_columns", "entries"),
    [
        (5, 37, 23, 61),  # odd sizes
        (2, 61, 513, 700),  # more than two blocks of columns
        (3, 150, 1, 150),  # one column of many entries
        (3, 1, 150, 150),  # one row of many entries
        (1, 1, 1, 1),
        (2, 7, 5, 0),  # no entry at all
        (0, 7, 5, 4),  # no chunk
    ],
)
def test_value_and_gradients_equal_the_references(
    c: int, num_rows: int, num_columns: int, entries: int, dtype: torch.dtype, kernel_device: str
) -> None:
    case = random_case(c, num_rows, num_columns, entries)
    y, x_grad, weights_grad = case.run(dtype, kernel_device)
    y_expected, x_grad_expected, weights_grad_expected = case.expected(dtype)
    assert_near(y, y_expected, dtype, kernel_device)
    assert_near(x_grad, x_grad_expected, dtype, kernel_device)
    assert_near(weights_grad, weights_grad_expected, torch.float32, kernel_device)


def test_targets_at_the_border_of_short_and_long_are_summed_once(kernel_device: str) -> None:
    counts = torch.tensor([SHORT - 1, SHORT, SHORT + 1, 0, 3 * SHORT])
    columns = torch.repeat_interleave(torch.arange(5), counts).to(kernel_device)
    ones = torch.ones(len(columns), device=kernel_device)
    y = scatter_columns(
        ones[None], torch.arange(len(columns), device=kernel_device), columns, ones, 5, implementation="triton"
    )
    assert y.cpu().tolist() == [counts.tolist()]


def test_w_of_a_numeral_by_hand(kernel_device: str) -> None:
    rows, columns = torch.tensor([[0, 1, 1, 1], [0, 2, 1, 3]], device=kernel_device)
    weights = torch.tensor([1, 0.75, 0.1875, 0.0625], device=kernel_device)
    x = torch.tensor([[0.5, 0.5], [1.0, 0.0]], device=kernel_device)
    y = scatter_columns(x, rows, columns, weights, 5, implementation="triton")
    assert y.tolist() == [[0.5, 0.09375, 0.375, 0.03125, 0], [1, 0, 0, 0, 0]]


def test_x_may_be_a_slice_or_transposed(kernel_device: str) -> None:
    case = random_case(5, 37, 23, 61)
    plan = ScatterPlan.of(case.rows.to(kernel_device), case.columns.to(kernel_device), 37, 23)
    wide = torch.nn.functional.pad(case.x, (0, 3), value=torch.inf).to(kernel_device)
    for x in (wide[:, :37], case.x.to(kernel_device).t().contiguous().t()):
        y = scatter_columns(
            x, plan.rows, plan.columns, case.weights.to(kernel_device), 23, plan=plan, implementation="triton"
        )
        assert_near(y.double().cpu(), case.expected(torch.float32)[0], torch.float32, kernel_device)


def test_bfloat16_sums_are_not_rounded_on_the_way(kernel_device: str) -> None:
    # 256 + 1 is 256 in bfloat16: a sum that is rounded at every step stays there.
    x = torch.tensor([[256.0, 1, 1, 1, 1]], dtype=torch.bfloat16, device=kernel_device)
    rows, columns = torch.arange(5, device=kernel_device), torch.zeros(5, dtype=torch.int64, device=kernel_device)
    y = scatter_columns(x, rows, columns, torch.ones(5, device=kernel_device), 1, implementation="triton")
    assert y.item() == 260


def test_results_repeat_to_the_bit(kernel_device: str) -> None:
    case = random_case(3, 150, 2, 150)
    first, second = case.run(torch.float32, kernel_device), case.run(torch.float32, kernel_device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
