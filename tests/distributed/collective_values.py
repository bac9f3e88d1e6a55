"""Counts what a rank hands to every collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One collective: its name, values that the rank gives it (its own part of an exchange left out), and bytes."""

    name: str
    values: int
    bytes: int


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Every collective of tensors within the block, on this rank."""
    calls: list[Call] = []

    def note(name: str, given: Tensor, values: int) -> None:
        calls.append(Call(name, values, values * given.element_size()))

    real = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_gather_into_tensor")}
    exchange: Any = dist.all_to_all_single

    def of_one(name: str, argument: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(name, args[argument], args[argument].numel())
            return real[name](*args, **kwargs)

        return call

    def all_to_all_single(output: Tensor, given: Tensor, receive: list[int], send: list[int], group: Any) -> Any:
        row = given[0].numel() if len(given) else 0
        note("all_to_all_single", given, (sum(send) - send[group.rank()]) * row)
        return exchange(output, given, receive, send, group=group)

    argument = {"all_reduce": 0, "broadcast": 0, "all_gather_into_tensor": 1}
    patches = {name: of_one(name, argument[name]) for name in real}
    with mock.patch.multiple(dist, all_to_all_single=all_to_all_single, **patches):
        yield calls
