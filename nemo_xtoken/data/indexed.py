"""Megatron's indexed dataset format (`.bin` and `.idx`), written and memory-mapped in numpy.

`.bin` holds the tokens of all sequences back to back. `.idx` holds, little-endian: the magic, uint64 version 1, uint8
dtype code, uint64 sequence count, uint64 length of the document indices, int32 sequence lengths, int64 byte pointers
into `.bin`, int64 document indices (0, then the number of sequences up to the end of each document). Here a document is
one sequence.
"""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nemo_xtoken.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[np.dtype[Any], int] = {
    np.dtype(name): code
    for name, code in (("u1", 1), ("i1", 2), ("<i2", 3), ("<i4", 4), ("<i8", 5), ("<f8", 6), ("<f4", 7), ("<u2", 8))
}
DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype Megatron keeps ids of such a vocabulary in: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    """The path of the tokens."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """The path of the index."""
    return prefix.with_name(prefix.name + ".idx")


class IndexedWriter:
    """Writes one indexed dataset, document by document; the index comes when the `with` block ends without an error."""

    def __init__(self, prefix: Path, dtype: DTypeLike) -> None:
        self._prefix = prefix
        self._dtype = np.dtype(dtype)
        self._lengths = array("i")
        self._file = bin_path(prefix).open("wb", buffering=1 << 20)

    def add(self, document: NDArray[Any]) -> None:
        """Append one document, [n] of any integer dtype whose values fit."""
        self._file.write(np.ascontiguousarray(document, dtype=self._dtype).data)
        self._lengths.append(len(document))

    def append(self, prefix: Path) -> None:
        """Append all documents of a dataset of the same dtype."""
        reader = IndexedReader(prefix)
        assert reader.dtype == self._dtype
        self._lengths.frombytes(reader.lengths.tobytes())
        with bin_path(prefix).open("rb") as file:
            shutil.copyfileobj(file, self._file, 1 << 22)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is None:
            self._write_index()

    def _write_index(self) -> None:
        lengths = np.array(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        pointers = np.concatenate([np.zeros(1, "<i8"), ends])[: len(lengths)]
        with idx_path(self._prefix).open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self._dtype], len(lengths), len(lengths) + 1))
            for table in (lengths, pointers, np.arange(len(lengths) + 1, dtype="<i8")):
                file.write(table.data)
            file.flush()
            os.fsync(file.fileno())


class IndexedReader:
    """A memory-mapped indexed dataset; `reader[i]` is sequence i, a read-only view [n] of the file.

    lengths    [sequences] int32, in tokens
    documents  [documents + 1] int64, document d is sequences documents[d] to documents[d + 1]
    Raises DataError for a missing, damaged or truncated file.
    """

    def __init__(self, prefix: Path) -> None:
        index, tokens = idx_path(prefix), bin_path(prefix)
        for path in (index, tokens):
            if not path.is_file():
                raise DataError(f"expected a file {path}, found none; prepare the data again")
        self.dtype, self.lengths, self._starts, self.documents = _read_index(index)
        self._tokens = _map(tokens, self.dtype)
        if (self._starts > np.int64(len(self._tokens)) - self.lengths).any():
            raise DataError(
                f"{tokens} is cut short: {index.name} expects more tokens than it holds; prepare the data again"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> NDArray[Any]:
        start = self._starts[i]
        return self._tokens[start : start + self.lengths[i]]


def _read_index(path: Path) -> tuple[np.dtype[Any], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """The dtype, and of each sequence the length and the first token's place; the first sequence of each document."""
    content = _map(path, np.dtype("u1"))
    if len(content) < HEADER.size or content[: len(MAGIC)].tobytes() != MAGIC:
        raise DataError(f"{path} is not an index of Megatron's indexed dataset format; prepare the data again")
    _, version, code, sequences, documents = HEADER.unpack(content[: HEADER.size].tobytes())
    if version != VERSION or code not in DTYPES:
        raise DataError(
            f"{path} has version {version} and dtype code {code}; expected version {VERSION} and a code of 1 to 8"
        )
    if len(content) < HEADER.size + 12 * sequences + 8 * documents:
        raise DataError(
            f"{path} is cut short: it names {sequences} sequences and ends before them; prepare the data again"
        )
    lengths = np.frombuffer(content, dtype="<i4", count=sequences, offset=HEADER.size)
    pointers = np.frombuffer(content, dtype="<i8", count=sequences, offset=HEADER.size + lengths.nbytes)
    bounds = np.frombuffer(content, dtype="<i8", count=documents, offset=HEADER.size + lengths.nbytes + pointers.nbytes)
    dtype = DTYPES[code]
    starts = pointers // dtype.itemsize
    _check_sequences(path, lengths, pointers, starts * dtype.itemsize)
    _check_documents(path, bounds, sequences)
    return dtype, lengths, starts, bounds


def _check_sequences(
    path: Path, lengths: NDArray[np.int32], pointers: NDArray[np.int64], whole_pointers: NDArray[np.int64]
) -> None:
    """Raise DataError for a sequence that cannot be one. whole_pointers: the same, rounded down to whole tokens."""
    bad = (lengths < 0) | (pointers < 0) | (pointers != whole_pointers)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{path} is damaged: sequence {i + 1} has {lengths[i]} tokens from byte {pointers[i]} on, where no "
            "sequence can be; prepare the data again"
        )


def _check_documents(path: Path, bounds: NDArray[np.int64], sequences: int) -> None:
    """Raise DataError unless the documents are the sequences, each once and in order."""
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != sequences or (bounds[1:] < bounds[:-1]).any():
        raise DataError(
            f"{path} is damaged: expected documents that never go back, from sequence 0 to {sequences}, the last; "
            "prepare the data again"
        )


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The whole file as an array; a plain one, since slices of `np.memmap` cost several times as much."""
    if path.stat().st_size < dtype.itemsize:
        return np.empty(0, dtype)
    length = path.stat().st_size // dtype.itemsize
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))
