from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken.data import Manifest, PreparedData, prepare
from nemo_xtoken.data.aligned import Edges, with_edges
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import Encoding, role_code
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl

BOS, EOS = 0, 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", [*random_texts(20), "", "last"])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_documents_come_back_with_their_specials_and_chunks(tmp_path: Path) -> None:
    student, teacher = FakeTokenizer(3), FakeTokenizer(5, salt=1, bos=False)
    texts = random_texts(30)
    prepare([write_jsonl(tmp_path / "text.jsonl", texts)], tmp_path / "out", student, teacher)
    data = PreparedData.open(tmp_path / "out")
    assert len(data) == 30
    for i, text in enumerate(texts):
        document = data.document(i)
        assert document.student_tokens.tolist() == [BOS, *student.encode(text).ids, EOS]
        assert document.teacher_tokens.tolist() == [*teacher.encode(text).ids, EOS]
        chunks = document.chunks
        covered = b""
        for c in range(len(chunks)):
            sides = (
                (student, document.student_tokens[chunks.student_start[c] : chunks.student_end[c]]),
                (teacher, document.teacher_tokens[chunks.teacher_start[c] : chunks.teacher_end[c]]),
            )
            ours, theirs = (b"".join(tokenizer.token_bytes(i) for i in ids.tolist()) for tokenizer, ids in sides)
            assert ours == theirs
            covered += ours
        assert covered == text.encode()
        last = (chunks.student_end[-1], chunks.teacher_end[-1])
        assert last == (len(document.student_tokens), len(document.teacher_tokens)), "eos pairs with eos"
        assert chunks.student_start[0] == 1, "a bos on one side only is in no chunk"


def test_specials_cover_no_bytes_at_the_ends_of_the_text() -> None:
    text = "né"
    encoding = with_edges(FakeTokenizer(1, inexact_every=3).encode(text), Edges(BOS, EOS), num_bytes=3)
    assert encoding.ids.tolist() == [BOS, 2, 3, 4, EOS]
    assert encoding.starts.tolist() == [0, 0, 1, 2, 3]
    assert encoding.ends.tolist() == [0, 1, 2, 3, 3]
    assert encoding.roles is not None
    assert encoding.roles.tolist() == [role_code("bos"), 0, 0, 0, role_code("eos")]
    assert encoding.exact is not None
    assert encoding.exact.tolist() == [True, True, True, False, True]
    bare = with_edges(FakeTokenizer(1).encode(text), Edges(None, None), num_bytes=3)
    assert bare.ids.tolist() == [2, 3, 4]
    assert bare.exact is None


def test_the_manifest_counts_what_is_there(tmp_path: Path, source: Path) -> None:
    student, teacher = FakeTokenizer(3), FakeTokenizer(5, salt=1, inexact_every=6)
    manifest = prepare([source], tmp_path / "out", student, teacher)
    data = PreparedData.open(tmp_path / "out")
    assert data.manifest == manifest
    assert (manifest.documents, manifest.empty_documents) == (21, 1)
    documents = [data.document(i) for i in range(len(data))]
    assert manifest.student.tokens == sum(len(document.student_tokens) for document in documents)
    assert manifest.teacher is not None
    assert manifest.teacher.tokens == sum(len(document.teacher_tokens) for document in documents)
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    assert data.document_bytes.tolist() == [len(text.encode()) for text in texts if text]
    assert manifest.bytes == data.document_bytes.sum()
    counts = data.teachers[0].chunk_counts
    assert manifest.teacher.chunks == sum(len(document.chunks) for document in documents) == counts.sum()
    inexact = sum(int((~document.chunks.exact).sum()) for document in documents)
    assert 0 < manifest.teacher.inexact_chunks == inexact < manifest.teacher.chunks
    one_to_one = sum(
        int(
            (
                (d.chunks.student_end - d.chunks.student_start == 1)
                & (d.chunks.teacher_end - d.chunks.teacher_start == 1)
            ).sum()
        )
        for d in documents
    )
    assert 0 < manifest.teacher.one_to_one_chunks == one_to_one < manifest.teacher.chunks
    assert manifest.teacher.one_to_one_share == one_to_one / manifest.teacher.chunks
    assert manifest.sources[0].bytes == source.stat().st_size


def test_small_vocabularies_take_two_bytes_a_token_and_large_ones_four(tmp_path: Path, source: Path) -> None:
    prepare([source], tmp_path / "out", FakeTokenizer(vocab_size=5_000), FakeTokenizer(3, vocab_size=65_500))
    document = PreparedData.open(tmp_path / "out").document(0)
    assert (document.student_tokens.dtype, document.teacher_tokens.dtype) == (np.uint16, np.int32)


def test_megatron_reads_all_three_files(tmp_path: Path, source: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    prepare([source], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    data = PreparedData.open(tmp_path / "out")
    for name, ours in (
        ("student", data.student_tokens),
        ("teacher", data.teachers[0].tokens),
        ("chunks", lambda i: data.teachers[0].chunk_table(i).reshape(-1)),
    ):
        theirs = megatron.IndexedDataset(str(tmp_path / "out" / name))
        assert len(theirs) == len(data)
        assert all((theirs[i] == ours(i)).all() for i in range(len(data)))


def test_without_a_teacher_there_are_student_tokens_only(tmp_path: Path, source: Path) -> None:
    manifest = prepare([source], tmp_path / "out", FakeTokenizer(), None)
    assert (manifest.teacher, manifest.teachers) == (None, ())
    assert not (tmp_path / "out" / "teacher.bin").exists()
    data = PreparedData.open(tmp_path / "out")
    assert data.teachers == ()
    document = data.document(3)
    assert (len(document.teacher_tokens), len(document.chunks)) == (0, 0)
    assert len(document.student_tokens) == data.student_lengths[3]


def test_progress_ends_at_all_bytes_of_the_sources(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shard_writer.BATCH_CHARACTERS", 500)
    calls: list[tuple[int, int]] = []
    prepare([source], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2), on_progress=lambda *call: calls.append(call))
    size = source.stat().st_size
    assert len(calls) > 3
    assert calls == sorted(calls)
    assert calls[-1] == (size, size)


def test_batches_do_not_change_the_result(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([source], tmp_path / "one", FakeTokenizer(), FakeTokenizer(2))
    monkeypatch.setattr("nemo_xtoken.data.shard_writer.BATCH_CHARACTERS", 1)
    prepare([source], tmp_path / "many", FakeTokenizer(), FakeTokenizer(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_the_same_inputs_are_reused_under_any_path(tmp_path: Path, source: Path) -> None:
    first = prepare([source], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    moved = Path(shutil.copy(source, tmp_path / "moved.jsonl"))
    second = prepare([moved], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    assert (first.reused, second.reused) == (False, True)
    assert second == first
    assert "reused" not in json.loads((tmp_path / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("change", ["text", "student", "teacher", "no teacher", "text key"])
def test_other_inputs_are_refused_unless_told_to_overwrite(tmp_path: Path, source: Path, change: str) -> None:
    out = tmp_path / "out"
    prepare([source], out, FakeTokenizer(), FakeTokenizer(2))
    before = contents(out)
    student = FakeTokenizer(7) if change == "student" else FakeTokenizer()
    teacher = None if change == "no teacher" else FakeTokenizer(7) if change == "teacher" else FakeTokenizer(2)
    if change in ("text", "text key"):
        write_jsonl(source, random_texts(3, seed=5), key="body" if change == "text key" else "text")
    key = "body" if change == "text key" else "text"
    with pytest.raises(
        DataError, match="other text, tokenizers or version; choose another directory or pass overwrite"
    ):
        prepare([source], out, student, teacher, text_key=key)
    assert contents(out) == before
    manifest = prepare([source], out, student, teacher, text_key=key, overwrite=True)
    assert PreparedData.open(out).manifest == manifest
    assert contents(out) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.jsonl"], "the old data is gone"


def test_the_same_file_under_another_key_is_other_text(tmp_path: Path) -> None:
    source = tmp_path / "both.jsonl"
    source.write_text('{"text": "one", "body": "two"}\n')
    prepare([source], tmp_path / "out", FakeTokenizer(), None)
    with pytest.raises(DataError, match="other text, tokenizers or version"):
        prepare([source], tmp_path / "out", FakeTokenizer(), None, text_key="body")


def test_a_directory_with_other_files_is_never_removed(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"not prepared data, such as thesis\.tex"):
            prepare([source], out, FakeTokenizer(), None, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "mine"


class FailingTokenizer(FakeTokenizer):
    """Fails at the second batch."""

    calls = 0

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().encode_batch(texts)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_xtoken.data.shard_writer.BATCH_CHARACTERS", 500)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", FailingTokenizer(), FakeTokenizer(2))
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_an_interrupted_overwrite_keeps_the_old_data(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([source], tmp_path / "out", FakeTokenizer(7), FakeTokenizer(2))
    before = contents(tmp_path / "out")
    monkeypatch.setattr("nemo_xtoken.data.shard_writer.BATCH_CHARACTERS", 500)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", FailingTokenizer(), FakeTokenizer(2), overwrite=True)
    assert contents(tmp_path / "out") == before


def test_an_incomplete_directory_is_passed_over_and_rebuilt(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    whole = prepare([source], out, FakeTokenizer(), FakeTokenizer(2))
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        PreparedData.open(out)
    again = prepare([source], out, FakeTokenizer(), FakeTokenizer(2))
    assert (again, again.reused) == (whole, False)


def test_damaged_prepared_data_is_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="expected a directory of prepared data"):
        PreparedData.open(out)
    prepare([source], out, FakeTokenizer(), FakeTokenizer(2))
    good = json.loads((out / "manifest.json").read_text())
    for damaged, message in (
        ("{", "cannot read"),
        ("[]", "schema version None"),
        (json.dumps({**good, "schema_version": 99}), "schema version 99, expected 2 or 3"),
        (json.dumps({**good, "student": {"spec": "x"}}), "is damaged"),
        (json.dumps({**good, "colour": "red"}), "should hold"),
        (json.dumps({**good, "documents": 7}), "different numbers of documents"),
        (json.dumps({**good, "documents": "21"}), "is damaged .documents: expected int, got '21'.; prepare"),
        (json.dumps({**good, "bytes": -1}), "is damaged .bytes: expected a number of at least 0, got -1"),
        (json.dumps({**good, "teachers": [{**good["teachers"][0], "chunks": None}]}), "chunks: expected int, got None"),
        (json.dumps({**good, "student": {**good["student"], "bos_id": "0"}}), "bos_id: expected int . None, got '0'"),
        (json.dumps({**good, "sources": [{**good["sources"][0], "bytes": 1.5}]}), "bytes: expected int, got 1.5"),
        (json.dumps({**good, "skipped_examples": 3}), "is damaged"),
    ):
        (out / "manifest.json").write_text(damaged)
        with pytest.raises(DataError, match=message) as caught:
            PreparedData.open(out)
        assert "\n" not in str(caught.value)
    (out / "manifest.json").write_text(json.dumps(good))
    assert PreparedData.open(out).manifest == Manifest.load(out)
    table = (out / "documents.npy").read_bytes()
    for content in (b"", b"nonsense", b"PK\x03\x04" + bytes(40), table[:60], table[:-8]):
        (out / "documents.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*documents\.npy"):
            PreparedData.open(out)
    for numbers in (np.zeros((21, 3)), np.zeros(63, np.int64), np.zeros((21, 4), np.int64)):
        np.save(out / "documents.npy", numbers)
        with pytest.raises(DataError, match=r"documents\.npy holds .* numbers of shape .*; expected int64"):
            PreparedData.open(out)


def test_no_power_loss_leaves_data_that_is_not_whole(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files and their directory are on the disk before it gets its name, and the name before the parts go."""
    events: list[str] = []
    real_fsync, real_rename, real_rmtree = os.fsync, Path.rename, shutil.rmtree

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(tmp_path)}")
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        events.append(f"name {self.relative_to(tmp_path)}")
        return real_rename(self, target)

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        events.append(f"remove {path.relative_to(tmp_path)}")
        real_rmtree(path, ignore_errors)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    prepare([source], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    for directory in (f".out.partial/000000.{os.getpid()}.tmp", ".out.partial/whole"):
        named = events.index(f"name {directory}")
        assert events[named - 1] == f"sync {directory}"
        assert {f"sync {directory}/{name}" for name in files} <= set(events[: named - 1])
    assert events[-2:] == ["sync .", "remove .out.partial"]


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="got a file; choose another directory"):
        prepare([source], tmp_path / "file", FakeTokenizer(), None)
    with pytest.raises(DataError, match=r"cannot write .*file/out: "):
        prepare([source], tmp_path / "file" / "out", FakeTokenizer(), None)
