"""Heads that do more than multiply: bias, logit scale, soft cap, and the gradient through them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.parallel import shard_pair
from nemo_xtoken.parallel.logits import HeadOptions, cut_options, logits_of, product_gradient
from tests.problems import random_problem


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


OPTIONS = {
    "plain": HeadOptions(),
    "bias": HeadOptions(bias=normal(11)),
    "granite": HeadOptions(scale=1 / 8),
    "cohere": HeadOptions(scale=0.0625),
    "gemma_2": HeadOptions(soft_cap=3.0),
    "all": HeadOptions(bias=normal(11), scale=1.7, soft_cap=2.0),
}


def test_logits_by_hand() -> None:
    rows, head = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0], [0.0, -4.0]])
    options = HeadOptions(bias=torch.tensor([1.0, 0.0]), scale=0.5, soft_cap=4.0)
    assert logits_of(rows, head).tolist() == [[5.0, -8.0]]
    assert logits_of(rows, head, options)[0].tolist() == pytest.approx([4 * math.tanh(3 / 4), -4 * math.tanh(1)])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradients_are_autograds(name: str) -> None:
    rows, head = normal(7, 5).requires_grad_(), normal(11, 5).requires_grad_()
    bias = OPTIONS[name].bias
    options = HeadOptions(
        bias=None if bias is None else bias.clone().requires_grad_(),
        scale=OPTIONS[name].scale,
        soft_cap=OPTIONS[name].soft_cap,
    )
    inputs = [x for x in (rows, head, options.bias) if x is not None]
    logits, logits_grad = logits_of(rows, head, options), normal(7, 11)
    expected = torch.autograd.grad(logits, inputs, logits_grad)
    gradient = product_gradient(logits_grad, logits, options)
    actual = [gradient @ head, gradient.t() @ rows, gradient.sum(0)]
    for ours, autograds in zip(actual, expected, strict=False):
        torch.testing.assert_close(ours, autograds, rtol=1e-12, atol=1e-12)


def test_a_gradient_that_leaves_the_cap_out_differs() -> None:
    rows, head, logits_grad = normal(7, 5), normal(11, 5), normal(7, 11)
    capped = OPTIONS["gemma_2"]
    right = product_gradient(logits_grad, logits_of(rows, head, capped), capped)
    assert (right - logits_grad).abs().max() > 0.1


@pytest.mark.parametrize("name", OPTIONS)
def test_shards_have_the_columns_of_the_whole_and_their_row_gradients_add_up(name: str) -> None:
    rows, head, options, logits_grad = normal(7, 5), normal(11, 5), OPTIONS[name], normal(7, 11)
    whole = logits_of(rows, head, options)
    whole_rows_grad = product_gradient(logits_grad, whole, options) @ head
    rows_grad = torch.zeros_like(rows)
    for ids in torch.arange(11).tensor_split(3):
        shard = options.of_rows(ids)
        logits = logits_of(rows, head[ids], shard)
        torch.testing.assert_close(logits, whole[:, ids], rtol=1e-12, atol=1e-12)
        rows_grad += product_gradient(logits_grad[:, ids], logits, shard) @ head[ids]
    torch.testing.assert_close(rows_grad, whole_rows_grad, rtol=1e-12, atol=1e-12)


def test_bf16_heads_give_logits_in_float32() -> None:
    rows, head = normal(7, 5, dtype=torch.bfloat16), normal(11, 5, dtype=torch.bfloat16)
    options = HeadOptions(bias=normal(11, dtype=torch.bfloat16), soft_cap=30.0)
    logits = logits_of(rows, head, options)
    assert logits.dtype == torch.float32
    exact = logits_of(
        rows.double(), head.double(), HeadOptions(bias=normal(11, dtype=torch.bfloat16).double(), soft_cap=30.0)
    )
    torch.testing.assert_close(logits.double(), exact, rtol=2e-2, atol=2e-2)


def test_a_teachers_bias_is_cut_like_its_head() -> None:
    problem = random_problem(5)
    pair = shard_pair(problem.matrix, LossConfig(), problem.student_head, None)
    bias = normal(len(problem.teacher_head))
    cut = cut_options(HeadOptions(bias=bias, scale=2.0), pair)
    assert cut.bias is not None
    assert cut.bias.tolist() == bias[pair.teacher_rows].tolist()
    assert cut.scale == 2.0


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale must be positive, got 0"):
        HeadOptions(scale=0.0)
    with pytest.raises(ConfigError, match=r"soft_cap must be positive, got -30"):
        HeadOptions(soft_cap=-30.0)
    with pytest.raises(ConfigError, match=r"bias has shape \[3\], its weight has 11 rows"):
        logits_of(normal(7, 5), normal(11, 5), HeadOptions(bias=normal(3)))
