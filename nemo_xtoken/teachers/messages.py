"""What the student and a teacher on other ranks say to one another, as tensors in host memory."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.teachers.protocol import SampleRange

STOP = SampleRange("stop", 0, 0)
"""The request after the last one."""
DATASETS = ("training", "validation", STOP.dataset)
REQUEST_NUMBERS = 3
HEADER_BYTES = 4 * 8


class Header(NamedTuple):
    """What is said of a micro batch's hidden states.

    request   the number of the request that they answer, from 0
    number    of the micro batch in it, over all data-parallel ranks
    checksum  `checksum` of its tokens
    signal    that the teacher's rank was sent, 0 for none
    """

    request: int
    number: int
    checksum: int
    signal: int


def checksum(tokens: Tensor) -> int:
    """A checksum of the teacher's tokens [b, t] of a micro batch."""
    return zlib.crc32(tokens.cpu().contiguous().numpy().tobytes())


def pack_request(samples: SampleRange) -> Tensor:
    """A request as [REQUEST_NUMBERS] int64."""
    return torch.tensor([DATASETS.index(samples.dataset), samples.first, samples.count])


def unpack_request(message: Tensor) -> SampleRange:
    """The request that `pack_request` has packed."""
    dataset, first, count = message.tolist()
    return SampleRange(DATASETS[dataset], first, count)


def pack(header: Header, rows: Tensor) -> Tensor:
    """A header and rows [n, h] as bytes."""
    message = room_for(len(rows), rows.shape[1], rows.dtype, pinned=rows.is_cuda)
    message[:HEADER_BYTES].view(torch.int64)[:] = torch.tensor(header)
    message[HEADER_BYTES:].view(rows.dtype).view(rows.shape).copy_(rows)
    return message


def unpack(message: Tensor, width: int, dtype: torch.dtype) -> tuple[Header, Tensor]:
    """The header and the rows [n, width] in a message, which share its memory."""
    header = Header(*message[:HEADER_BYTES].view(torch.int64).tolist())
    return header, message[HEADER_BYTES:].view(dtype).view(-1, width)


def room_for(num_rows: int, width: int, dtype: torch.dtype, *, pinned: bool) -> Tensor:
    """Memory of the size of a message with so many rows."""
    return torch.empty(HEADER_BYTES + num_rows * width * dtype.itemsize, dtype=torch.uint8, pin_memory=pinned)
