from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nemo_xtoken.data import PackedDataset, PreparedData, prepare
from nemo_xtoken.data.packing import Packing, fill, pack, pack_in_order
from nemo_xtoken.data.pieces import Pieces, cut_pieces
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import IGNORED_LABEL, Encoding
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl

STUDENT, TEACHER = FakeTokenizer(3), FakeTokenizer(5, salt=1, bos=False, inexact_every=9)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("packing")
    source = write_jsonl(
        folder / "text.jsonl", [*random_texts(60), *random_texts(3, seed=1, shortest=900, longest=1500)]
    )
    prepare([source], folder / "out", STUDENT, TEACHER)
    return PreparedData.open(folder / "out")


@pytest.fixture(scope="module")
def student_only(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("student_only")
    prepare([write_jsonl(folder / "text.jsonl", random_texts(40))], folder / "out", STUDENT, None)
    return PreparedData.open(folder / "out")


def made_pieces(student: NDArray[np.int64], teacher: NDArray[np.int64]) -> Pieces:
    """Whole documents of these lengths."""
    zeros = np.zeros(len(student), np.int64)
    return Pieces(
        document=np.arange(len(student)),
        student_start=zeros,
        student_end=student,
        teacher_start=zeros[None],
        teacher_end=teacher[None],
        chunk_start=zeros[None],
        chunk_end=zeros[None],
        dropped_chunks=0,
    )


def without_teachers(pieces: Pieces) -> Pieces:
    nothing = np.empty((0, len(pieces)), np.int64)
    return replace(pieces, teacher_start=nothing, teacher_end=nothing, chunk_start=nothing, chunk_end=nothing)


def check(packing: Packing, pieces: Pieces, student_length: int, *teacher_lengths: int) -> None:
    """Every piece once, nothing empty, everything fits."""
    assert sorted(packing.order.tolist()) == list(range(len(pieces)))
    assert packing.offsets[0] == 0
    assert packing.offsets[-1] == len(pieces)
    for i in range(len(packing)):
        assert 0 < pieces.student_lengths[packing[i]].sum() <= student_length
        assert (pieces.teacher_lengths[:, packing[i]].sum(1) <= np.array(teacher_lengths)).all()


@pytest.mark.parametrize("lengths", [(64, 48), (64, 1000), (1000, 48), (2000, 2000), (20, 20)])
def test_pieces_tile_every_document_at_chunk_boundaries(prepared: PreparedData, lengths: tuple[int, int]) -> None:
    pieces = cut_pieces(prepared, lengths[0], lengths[1:])
    assert pieces.student_lengths.max() <= lengths[0]
    assert pieces.teacher_lengths.max() <= lengths[1]
    assert pieces.document.tolist() == sorted(pieces.document.tolist())
    for i in range(len(prepared)):
        mine = np.flatnonzero(pieces.document == i)
        chunks = prepared.document(i).chunks
        assert (pieces.student_start[mine[0]], pieces.teacher_start[0, mine[0]], pieces.chunk_start[0, mine[0]]) == (
            0,
            0,
            0,
        )
        for piece, following in pairwise(mine):
            assert pieces.student_end[piece] == pieces.student_start[following]
            assert pieces.teacher_end[0, piece] == pieces.teacher_start[0, following]
            assert pieces.chunk_end[0, piece] == pieces.chunk_start[0, following]
            assert chunks.student_start[pieces.chunk_start[0, following]] == pieces.student_start[following]
            assert chunks.teacher_start[pieces.chunk_start[0, following]] == pieces.teacher_start[0, following]
            both = pieces.chunk_end[0, piece]
            grown = (
                chunks.student_end[both] - pieces.student_start[piece] > lengths[0]
                or chunks.teacher_end[both] - pieces.teacher_start[0, piece] > lengths[1]
            )
            assert grown, "a piece is as long as it can be"
        assert pieces.student_end[mine[-1]] == prepared.student_lengths[i]
        assert pieces.teacher_end[0, mine[-1]] == prepared.teachers[0].lengths[i]
        assert pieces.chunk_end[0, mine[-1]] == len(chunks)
    assert pieces.dropped_chunks == 0
    assert int(pieces.ends_document.sum()) == len(prepared)


def test_a_chunk_longer_than_a_sequence_is_left_out_and_counted(tmp_path: Path) -> None:
    class Bytes(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__(1, bos=False, eos=False)

    class Words(FakeTokenizer):
        """One token a word, spaces with the word before."""

        def __init__(self) -> None:
            super().__init__(1, salt=2, bos=False, eos=False)

        def encode(self, text: str) -> Encoding:
            words = [word + " " for word in text.split(" ")]
            ends = np.minimum(np.cumsum([len(word) for word in words]), len(text))
            starts = np.concatenate([[0], ends[:-1]])
            ids = np.array([self._id(word.encode()) for word in words], np.int32)
            return Encoding(ids, starts, ends)

    text = "ab cdef a-word-much-too-long xy zq"
    prepare([write_jsonl(tmp_path / "t.jsonl", [text])], tmp_path / "out", Bytes(), Words())
    prepared = PreparedData.open(tmp_path / "out")
    pieces = cut_pieces(prepared, 9, [9])
    assert pieces.dropped_chunks == 1
    kept = [text[a:b] for a, b in zip(pieces.student_start, pieces.student_end, strict=True)]
    assert kept == ["ab cdef ", "xy zq"]
    assert list(zip(pieces.teacher_start[0], pieces.teacher_end[0], strict=True)) == [(0, 2), (3, 5)]
    with pytest.raises(DataError, match=r"no chunk of .* fits into 1 student and 9 teacher tokens; raise"):
        cut_pieces(prepared, 1, [9])


def test_without_a_teacher_documents_are_cut_anywhere(student_only: PreparedData) -> None:
    pieces = cut_pieces(student_only, 10, [])
    assert pieces.student_lengths.sum() == student_only.student_lengths.sum()
    assert set(pieces.student_lengths[~pieces.ends_document].tolist()) == {10}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=120),
    st.integers(40, 90),
    st.integers(50, 90),
    st.integers(-3, 2**40),
    st.sampled_from([1, 5, 2048]),
)
def test_packing_keeps_its_promises(
    sizes: list[tuple[int, int]], student_length: int, teacher_length: int, seed: int, window: int
) -> None:
    student, teacher = np.array(sizes, np.int64).T
    pieces = made_pieces(student, teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_xtoken.data.packing.WINDOW", window)
        patch.setattr("nemo_xtoken.data.packing.OPEN_SAMPLES", 2)
        packing = pack(pieces, student_length, [teacher_length], seed, 0)
    check(packing, pieces, student_length, teacher_length)
    in_order = pack_in_order(pieces, student_length, [teacher_length])
    check(in_order, pieces, student_length, teacher_length)
    assert in_order.order.tolist() == list(range(len(pieces)))


@pytest.mark.parametrize("window", [1, 3, 50])
def test_samples_that_stay_open_over_windows_are_never_overfull(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_xtoken.data.packing.WINDOW", window)
    monkeypatch.setattr("nemo_xtoken.data.packing.OPEN_SAMPLES", 2)
    student = np.random.default_rng(0).integers(1, 60, 500)
    pieces = made_pieces(student, student // 2)
    check(pack(pieces, 64, [64], seed=1, epoch=0), pieces, 64, 64)


def test_many_windows_keep_their_promises_and_fill_98_percent() -> None:
    rng = np.random.default_rng(0)
    student = rng.integers(200, 2001, 7_000)
    teacher = (student * rng.uniform(0.85, 1.0, len(student))).astype(np.int64)
    pieces = made_pieces(student, teacher)
    packing = pack(pieces, 4096, [4096], seed=1, epoch=0)
    check(packing, pieces, 4096, 4096)
    student_fill, (teacher_fill,) = fill(packing, pieces, 4096, [4096])
    assert student_fill == student.sum() / len(packing) / 4096
    assert teacher_fill == teacher.sum() / len(packing) / 4096
    assert student_fill > 0.98
    assert fill(pack_in_order(pieces, 4096, [4096]), pieces, 4096, [4096])[0] < 0.9, "packing is what fills them"


def test_packing_fills_without_a_teacher_too() -> None:
    student = np.random.default_rng(0).integers(20, 201, 3_000)
    pieces = without_teachers(made_pieces(student, student))
    packing = pack(pieces, 512, [], seed=1, epoch=0)
    check(packing, pieces, 512)
    assert fill(packing, pieces, 512, [])[0] > 0.98


def test_an_epoch_is_decided_by_seed_and_epoch_alone() -> None:
    student = np.random.default_rng(0).integers(1, 100, 500)
    pieces = made_pieces(student, student)
    packings = {(seed, epoch): pack(pieces, 128, [128], seed, epoch) for seed in (1, 2) for epoch in (0, 1)}
    again = pack(pieces, 128, [128], 1, 0)
    assert (again.order == packings[1, 0].order).all()
    assert (again.offsets == packings[1, 0].offsets).all()
    orders = {tuple(packing.order.tolist()) for packing in packings.values()}
    assert len(orders) == 4


def test_the_order_of_an_epoch_is_pinned() -> None:
    """A resumed run depends on it: a change here needs another way to resume."""
    pieces = made_pieces(np.array([3, 5, 2, 4, 1, 6]), np.array([3, 5, 2, 4, 1, 6]))
    packing = pack(pieces, 8, [8], seed=1234, epoch=3)
    assert [packing[i].tolist() for i in range(len(packing))] == [[0, 1], [5, 2], [3, 4]]


def naive_sequence(parts: list[list[int]], length: int, padding: int) -> tuple[list[int], list[int], list[int]]:
    tokens: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for part in parts:
        tokens += part
        positions += range(len(part))
        labels += [*part[1:], IGNORED_LABEL]
    rest = length - len(tokens)
    return tokens + [padding] * rest, positions + list(range(rest)), labels + [IGNORED_LABEL] * rest


@pytest.mark.parametrize("lengths", [(64, 48), (301, 97), (2000, 2000)])
def test_samples_equal_a_naive_loop(prepared: PreparedData, lengths: tuple[int, int]) -> None:
    dataset = PackedDataset(prepared, *lengths, seed=5)
    packing, pieces = pack(dataset.pieces, lengths[0], lengths[1:], seed=5, epoch=0), dataset.pieces
    seen = 0
    for i in range(dataset.epoch_samples(0)):
        sample = dataset.sample(i)
        (aligned,) = sample.teachers
        students, teachers, rows, mask = [], [], [], []
        student_offset = teacher_offset = 0
        for p in packing[i].tolist():
            document = prepared.document(int(pieces.document[p]))
            a, b = int(pieces.student_start[p]), int(pieces.student_end[p])
            x, y = int(pieces.teacher_start[0, p]), int(pieces.teacher_end[0, p])
            students.append(document.student_tokens[a:b].tolist())
            teachers.append(document.teacher_tokens[x:y].tolist())
            chunks = document.chunks
            for c in range(len(chunks)):
                inside = chunks.student_start[c] > a and chunks.student_end[c] <= b
                inside &= chunks.teacher_start[c] > x and chunks.teacher_end[c] <= y
                if inside:
                    student_shift, teacher_shift = student_offset - a - 1, teacher_offset - x - 1
                    rows.append(
                        [
                            chunks.student_start[c] + student_shift,
                            chunks.student_end[c] + student_shift,
                            chunks.teacher_start[c] + teacher_shift,
                            chunks.teacher_end[c] + teacher_shift,
                        ]
                    )
                    mask.append(bool(chunks.exact[c]))
            student_offset, teacher_offset = student_offset + b - a, teacher_offset + y - x
        for ours, theirs, length in ((sample.student, students, lengths[0]), (aligned, teachers, lengths[1])):
            tokens, positions, labels = naive_sequence(theirs, length, padding=1)
            assert ours.tokens.tolist() == tokens
            assert ours.position_ids.tolist() == positions
            assert ours.labels.tolist() == labels
        assert aligned.chunk_rows.tolist() == rows
        assert aligned.chunk_mask.tolist() == mask
        seen += len(rows)
    assert seen > 0.8 * prepared.manifest.teachers[0].chunks


@pytest.mark.parametrize("lengths", [(64, 48), (2000, 2000)])
def test_the_labels_of_a_chunk_are_the_same_bytes_on_both_sides(
    prepared: PreparedData, lengths: tuple[int, int]
) -> None:
    dataset = PackedDataset(prepared, *lengths, seed=5)
    masked = specials = 0
    for i in range(dataset.epoch_samples(0)):
        sample = dataset.sample(i)
        (aligned,) = sample.teachers
        for row, counts in zip(aligned.chunk_rows.tolist(), aligned.chunk_mask.tolist(), strict=True):
            student = sample.student.labels[row[0] : row[1]].tolist()
            teacher = aligned.labels[row[2] : row[3]].tolist()
            assert student
            assert teacher
            assert IGNORED_LABEL not in student + teacher
            ours = b"".join(STUDENT.token_bytes(token) for token in student)
            assert ours == b"".join(TEACHER.token_bytes(token) for token in teacher)
            if not ours:
                assert student == teacher == [1], "eos with eos"
                specials += 1
            masked += not counts
        starts = aligned.chunk_rows[:, [0, 2]]
        assert (np.diff(starts, axis=0) > 0).all()
    assert specials > 50
    assert masked > 0


def test_inexact_chunks_count_where_they_are_asked_for(prepared: PreparedData) -> None:
    (strict,) = PackedDataset(prepared, 128, 128, seed=5).sample(0).teachers
    (lenient,) = PackedDataset(prepared, 128, 128, seed=5, exact_chunks_only=False).sample(0).teachers
    assert not strict.chunk_mask.all()
    assert lenient.chunk_mask.all()
    assert (strict.chunk_rows == lenient.chunk_rows).all()


def test_epochs_follow_each_other_and_each_holds_every_token_once(prepared: PreparedData) -> None:
    dataset = PackedDataset(prepared, 100, 100, seed=3)
    at = 0
    for epoch in range(3):
        tokens: list[int] = []
        for i in range(at, at + dataset.epoch_samples(epoch)):
            sample = dataset.sample(i)
            filled = (sample.student.labels != IGNORED_LABEL) | (np.arange(100) == 0)
            filled |= np.roll(sample.student.labels != IGNORED_LABEL, 1)
            tokens += sample.student.tokens[filled].tolist()
        at += dataset.epoch_samples(epoch)
        everything = np.concatenate([prepared.student_tokens(i) for i in range(len(prepared))])
        short = int((dataset.pieces.student_lengths == 1).sum())
        assert len(everything) - short <= len(tokens) <= len(everything)
    fresh = PackedDataset(prepared, 100, 100, seed=3)
    late = at - 1
    assert fresh.sample(late).student.tokens.tolist() == dataset.sample(late).student.tokens.tolist()
    assert fresh.sample(0).student.tokens.tolist() == dataset.sample(0).student.tokens.tolist()


def test_a_dataset_without_a_teacher_has_student_sequences_only(student_only: PreparedData) -> None:
    dataset = PackedDataset(student_only, 64, 99, seed=3)
    sample = dataset.sample(0)
    assert (len(sample.student.tokens), sample.teachers) == (64, ())
    assert dataset.fill[0] > 0.9
    assert dataset.fill[1] == ()
