from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken.data.indexed import (
    HEADER,
    MAGIC,
    VERSION,
    IndexedReader,
    IndexedWriter,
    bin_path,
    idx_path,
    token_dtype,
)
from nemo_xtoken.errors import DataError

DOCUMENTS = [[1, 2, 3], [], [65_499], list(range(1000)), [7]]
LENGTHS, POINTERS, BOUNDS = (HEADER.size + size * len(DOCUMENTS) for size in (0, 4, 12))
"""Where the tables of their index begin."""


def write(prefix: Path, dtype: str, documents: list[list[int]] = DOCUMENTS) -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(np.array(document, np.int64))
    return prefix


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_documents_come_back_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    reader = IndexedReader(write(tmp_path / "tokens", dtype))
    assert reader.dtype == np.dtype(dtype)
    assert reader.lengths.tolist() == [3, 0, 1, 1000, 1]
    assert [reader[i].tolist() for i in range(len(reader))] == DOCUMENTS


@pytest.mark.parametrize("documents", [[], [[], []]])
def test_no_tokens_at_all_can_be_read_back(tmp_path: Path, documents: list[list[int]]) -> None:
    reader = IndexedReader(write(tmp_path / "tokens", "int32", documents))
    assert [reader[i].tolist() for i in range(len(reader))] == documents


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    prefix = write(tmp_path / "tokens", dtype)
    theirs = megatron.IndexedDataset(str(prefix), mmap=True)
    assert len(theirs) == len(DOCUMENTS)
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs[3].dtype == np.dtype(dtype)
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert theirs.sequence_lengths.tolist() == [3, 0, 1, 1000, 1]
    assert theirs.get(3, offset=10, length=2).tolist() == [10, 11]


def test_we_read_what_megatron_writes_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    reader = IndexedReader(tmp_path / "theirs")
    assert [reader[i].tolist() for i in range(len(reader))] == DOCUMENTS
    ours = write(tmp_path / "ours", "uint16")
    for path in (bin_path, idx_path):
        assert path(ours).read_bytes() == path(tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("vocab_size", [256, 65_499, 65_500, 151_936])
def test_ids_are_stored_in_the_dtype_that_megatron_picks(vocab_size: int) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert token_dtype(vocab_size) == np.dtype(megatron.DType.optimal_dtype(vocab_size))


def test_a_block_that_fails_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(TypeError), IndexedWriter(tmp_path / "tokens", "int32") as writer:
        writer.add(np.array(["no", "numbers"]), 5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(DataError, match=r"expected a file .*tokens\.idx"):
        IndexedReader(tmp_path / "tokens")


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    path = idx_path(write(tmp_path / "tokens", "int32"))
    good = path.read_bytes()
    for damaged, message in (
        (b"MMIDIDX\x00\x01" + good[9:], "is not an index"),
        (good[:20], "is not an index"),
        (good[:9] + b"\x02" + good[10:], "version 2"),
        (good[:17] + b"\x09" + good[18:], "dtype code 9"),
        (good[:-1], "is cut short"),
        (changed(good, LENGTHS + 4 * 2, "<i4", -5), r"tokens\.idx is damaged: sequence 3 has -5 tokens"),
        (changed(good, POINTERS + 8 * 3, "<i8", -400), r"damaged: sequence 4 has 1000 tokens from byte -400 on"),
        (changed(good, POINTERS + 8 * 3, "<i8", 3), r"damaged: sequence 4 has 1000 tokens from byte 3 on"),
        (changed(good, POINTERS + 8 * 4, "<i8", 1 << 40), r"tokens\.bin is cut short"),
        (changed(good, POINTERS + 8 * 4, "<i8", (1 << 63) - 4), r"tokens\.bin is cut short"),
        (changed(good, BOUNDS, "<i8", 1), r"damaged: expected documents that never go back, from sequence 0 to 5"),
        (changed(good, BOUNDS + 8 * 3, "<i8", 1), "damaged: expected documents that never go back"),
        (changed(good, BOUNDS + 8 * 3, "<i8", 1000), "damaged: expected documents that never go back"),
        (changed(good, BOUNDS + 8 * 5, "<i8", 4), "damaged: expected documents that never go back"),
        (HEADER.pack(MAGIC, VERSION, 4, 0, 0), "damaged: expected documents that never go back"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            IndexedReader(tmp_path / "tokens")


def changed(index: bytes, offset: int, dtype: str, value: int) -> bytes:
    number = np.array(value, dtype).tobytes()
    return index[:offset] + number + index[offset + len(number) :]


def test_tokens_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    path = bin_path(write(tmp_path / "tokens", "int32"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"tokens\.bin is cut short"):
        IndexedReader(tmp_path / "tokens")
