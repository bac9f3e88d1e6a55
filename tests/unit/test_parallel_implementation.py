"""The whole loss through the Triton programs against the same through torch."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_xtoken.config import Implementation, LossConfig, LossMode
from nemo_xtoken.errors import ConfigError, UnavailableError
from nemo_xtoken.parallel import distillation_loss
from tests.problems import random_problem

CONFIGS = [
    {"merge": "mean"},
    {"merge": "last", "teacher_top_k": 6, "temperature": 1.5},
    {"teacher_top_k": 6, "direction": "reverse", "block_memory_mib": 0.002},
]


def value_and_gradients(config: LossConfig, device: str, dtype: torch.dtype) -> list[Tensor]:
    problem = random_problem(41, dtype=dtype)
    hidden, head = (x.to(device).requires_grad_() for x in (problem.student_hidden, problem.student_head))
    terms = distillation_loss(
        hidden, head, problem.teacher_hidden.to(device), problem.teacher_head.to(device), problem.batch.to(device),
        problem.matrix, config, kd_scale=0.7, ce_scale=1.9,
    )  # fmt: skip
    gradients = torch.autograd.grad(terms.numerator, (hidden, head))
    return [x.detach().double().cpu() for x in (terms.numerator, *gradients)]


@pytest.mark.parametrize("settings", CONFIGS)
def test_triton_gives_the_value_and_gradients_of_torch(
    settings: dict[str, object], kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs: Any = importlib.import_module("nemo_xtoken.kernels.programs.chunk_probabilities")
    launched: list[int] = []
    forward: Any = programs.TritonProbabilities.forward

    def counting(*arguments: Any) -> Any:
        launched.append(1)
        return forward(*arguments)

    monkeypatch.setattr(programs.TritonProbabilities, "forward", staticmethod(counting))

    def config(implementation: Implementation) -> LossConfig:
        return LossConfig(implementation=implementation, **settings)  # pyright: ignore[reportArgumentType]

    actual = value_and_gradients(config("triton"), kernel_device, torch.float32)
    assert launched
    expected = value_and_gradients(config("torch"), "cpu", torch.float64)
    for value, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-4)


def test_triton_where_it_cannot_run_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"implementation='triton'"):
        value_and_gradients(LossConfig(implementation="triton"), "cpu", torch.float64)


@pytest.mark.parametrize("mode", ["h_kl", "gold", "uld", "strict_top_k"])
def test_triton_is_refused_for_modes_without_kernels(mode: LossMode) -> None:
    with pytest.raises(ConfigError, match=f"loss mode {mode} has no triton kernels.* set implementation to auto"):
        LossConfig(mode=mode, implementation="triton")
    assert LossConfig(mode=mode).implementation == "auto"
