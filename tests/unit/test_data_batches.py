from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_xtoken.data import GlobalBatches, PackedDataset, PreparedData, collate, prepare, sequential_batches
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.types import IGNORED_LABEL, DistillBatch
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl

STUDENT, TEACHER = FakeTokenizer(3), FakeTokenizer(5, salt=1, bos=False, inexact_every=9)
TEXTS = random_texts(60, longest=400)
S, T = 96, 80

Row = tuple[tuple[int, ...], ...]


def prepared_in(folder: Path, teacher: FakeTokenizer | None) -> PreparedData:
    prepare([write_jsonl(folder / "text.jsonl", TEXTS)], folder / "out", STUDENT, teacher)
    return PreparedData.open(folder / "out")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared_in(tmp_path_factory.mktemp("batches"), TEACHER)


@pytest.fixture(scope="module")
def dataset(prepared: PreparedData) -> PackedDataset:
    return PackedDataset(prepared, S, T, seed=11)


def rows(batch: DistillBatch) -> list[Row]:
    """Each sequence of a micro batch with all that belongs to it, chunks in its own rows."""
    chunks, result = batch.chunks, []
    for b in range(len(batch.student_tokens)):
        mine = (chunks.student_start >= b * S) & (chunks.student_start < (b + 1) * S)
        table = torch.stack(
            [
                chunks.student_start[mine] - b * S,
                chunks.student_end[mine] - b * S,
                chunks.teacher_start[mine] - b * T,
                chunks.teacher_end[mine] - b * T,
                chunks.mask[mine].long(),
            ]
        )
        tensors = (batch.student_tokens[b], batch.student_labels[b], batch.teacher_tokens[b], batch.teacher_labels[b])
        result.append(tuple(tuple(tensor.flatten().tolist()) for tensor in (*tensors, table)))
    return result


def global_step(dataset: PackedDataset, micro: int, dp_size: int, step: int, size: int = 8) -> list[Row]:
    ranks = []
    for dp_rank in range(dp_size):
        batches = GlobalBatches(dataset, micro, size, dp_rank, dp_size, consumed_samples=step * size)
        ranks.append(next(batches))
        assert batches.consumed_samples == (step + 1) * size
        assert len(ranks[-1]) == size // (micro * dp_size)
        assert all(len(batch.student_tokens) == micro for batch in ranks[-1])
    return [row for micro_batches in zip(*ranks, strict=True) for batch in micro_batches for row in rows(batch)]


def test_a_collated_batch_is_what_the_loss_expects(dataset: PackedDataset) -> None:
    samples = [dataset.sample(i) for i in range(3)]
    batch = collate(samples)
    for name, length in (("student", S), ("teacher", T)):
        for what in ("tokens", "position_ids", "labels"):
            tensor = getattr(batch, f"{name}_{what}")
            sequence = samples[1].student if name == "student" else samples[1].teachers[0]
            assert (tensor.shape, tensor.dtype) == ((3, length), torch.int64)
            assert tensor[1].tolist() == getattr(sequence, what).tolist()
    assert batch.student_loss_mask.dtype == torch.float32
    assert ((batch.student_loss_mask == 1) == (batch.student_labels != IGNORED_LABEL)).all()
    assert 0 < batch.student_loss_mask.sum() < batch.student_loss_mask.numel()
    chunks = batch.chunks
    assert (chunks.student_start.dtype, chunks.mask.dtype) == (torch.int64, torch.bool)
    assert len(chunks.mask) == sum(len(sample.teachers[0].chunk_rows) for sample in samples)
    assert (chunks.student_end > chunks.student_start).all()
    assert (chunks.teacher_end > chunks.teacher_start).all()
    assert (chunks.student_start.diff() > 0).all()
    assert (chunks.teacher_start.diff() > 0).all()
    labels, teacher_labels = batch.student_labels.flatten(), batch.teacher_labels.flatten()
    for c in range(len(chunks.mask)):
        ours = labels[chunks.student_start[c] : chunks.student_end[c]].tolist()
        theirs = teacher_labels[chunks.teacher_start[c] : chunks.teacher_end[c]].tolist()
        assert b"".join(map(STUDENT.token_bytes, ours)) == b"".join(map(TEACHER.token_bytes, theirs))


@pytest.mark.parametrize("step", [0, 1, 5])
def test_the_global_batch_is_the_same_for_every_layout(dataset: PackedDataset, step: int) -> None:
    expected = [row for i in range(step * 8, step * 8 + 8) for row in rows(collate([dataset.sample(i)]))]
    for micro in (1, 2, 4):
        for dp_size in (1, 2, 4):
            if micro * dp_size <= 8:
                assert global_step(dataset, micro, dp_size, step) == expected
    assert global_step(dataset, 2, 2, step + 1) != expected


def test_resuming_from_consumed_samples_equals_going_on(prepared: PreparedData, dataset: PackedDataset) -> None:
    uninterrupted = GlobalBatches(dataset, 2, 8, 1, 2)
    steps = [[rows(batch) for batch in next(uninterrupted)] for _ in range(12)]
    assert dataset.epoch_samples(0) < 12 * 8, "the run spans two epochs"
    for done in (1, 5, 11):
        resumed = GlobalBatches(PackedDataset(prepared, S, T, seed=11), 2, 8, 1, 2, consumed_samples=done * 8)
        assert [[rows(batch) for batch in next(resumed)] for _ in range(12 - done)] == steps[done:]


def test_a_global_batch_that_does_not_divide_is_refused(dataset: PackedDataset) -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size 8 is not divisible by .* = 3 x 2"):
        GlobalBatches(dataset, 3, 8, 0, 2)


@pytest.mark.parametrize("micro", [1, 4])
def test_evaluation_sees_every_document_once_and_in_order(prepared: PreparedData, micro: int) -> None:
    batches = list(sequential_batches(prepared, S, T, micro))
    assert all(len(batch.student_tokens) == micro for batch, _ in batches[:-1])
    assert 1 <= len(batches[-1].batch.student_tokens) <= micro
    assert sum(num_bytes for _, num_bytes in batches) == prepared.manifest.bytes
    seen = b""
    for batch, _ in batches:
        for tokens in batch.student_tokens:
            seen += b"".join(map(STUDENT.token_bytes, tokens.tolist()))
    assert seen == "".join(TEXTS).encode()


def test_the_bytes_of_an_evaluation_batch_are_those_of_the_documents_that_end_in_it(prepared: PreparedData) -> None:
    def covered(batch: DistillBatch) -> int:
        return sum(len(STUDENT.token_bytes(token)) for token in batch.student_tokens.flatten().tolist())

    for batch, num_bytes in sequential_batches(prepared, 2000, 2000, 1):
        assert num_bytes == covered(batch), "whole documents only"
    bytes_seen = bytes_ended = 0
    for batch, num_bytes in sequential_batches(prepared, S, T, 1):
        bytes_seen += covered(batch)
        bytes_ended += num_bytes
        assert bytes_ended in np.cumsum([0, *prepared.document_bytes])
        assert bytes_ended <= bytes_seen < bytes_ended + prepared.document_bytes.max()


def test_batches_without_a_teacher_have_no_teacher_tokens_and_no_chunks(tmp_path: Path) -> None:
    data = prepared_in(tmp_path, None)
    batch = next(GlobalBatches(PackedDataset(data, S, T, seed=1), 2, 4, 0, 1))[0]
    assert batch.student_tokens.shape == (2, S)
    assert batch.teacher_tokens.shape == batch.teacher_labels.shape == batch.teacher_position_ids.shape == (2, 0)
    assert len(batch.chunks.mask) == len(batch.chunks.student_start) == 0
    evaluated = list(sequential_batches(data, S, T, 3))
    assert sum(num_bytes for _, num_bytes in evaluated) == data.manifest.bytes
