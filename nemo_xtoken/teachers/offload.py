"""Host memory for what a GPU needs only at times: parameters of frozen models, hidden states that wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned where the tensor is on a GPU, so that it can come back while the GPU works."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


class HiddenStore:
    """Keeps hidden states until they are asked for: where they were computed, or in host memory.

    bytes_to_host, bytes_to_device  that were copied so far; 0 where nothing is offloaded
    """

    def __init__(self, device: torch.device, *, offload: bool) -> None:
        self._device, self._offload = device, offload
        self.bytes_to_host = self.bytes_to_device = 0

    def put(self, hidden: Tensor) -> Tensor:
        """What to keep in the place of it."""
        if not self._offload:
            return hidden
        self.bytes_to_host += hidden.nbytes
        return to_host(hidden)

    def get(self, kept: Tensor) -> Tensor:
        """What `put` was given, on the device again."""
        if not self._offload:
            return kept
        self.bytes_to_device += kept.nbytes
        return torch.empty_like(kept, device=self._device).copy_(kept, non_blocking=kept.is_pinned())


class OffloadedParameters:
    """A frozen model whose parameters are in host memory except while it runs.

    They never change, so they are copied to the host once, and to the device before each use.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._devices = [parameter.device for parameter in self._parameters]
        self._hosts = [to_host(parameter) for parameter in self._parameters]
        self._release()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The parameters are where they were before, meanwhile."""
        for parameter, host, device in zip(self._parameters, self._hosts, self._devices, strict=True):
            parameter.data = torch.empty_like(host, device=device).copy_(host, non_blocking=host.is_pinned())
        try:
            yield
        finally:
            self._release()

    @property
    def are_released(self) -> bool:
        """Whether no parameter has memory besides that of the host copies."""
        pairs = zip(self._parameters, self._hosts, strict=True)
        return all(parameter.data_ptr() == host.data_ptr() for parameter, host in pairs)

    def _release(self) -> None:
        for parameter, host in zip(self._parameters, self._hosts, strict=True):
            parameter.data = host
