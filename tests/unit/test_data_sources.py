from __future__ import annotations

import gzip
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.data import Manifest, PreparedData, prepare
from nemo_xtoken.data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, IndexedWriter, idx_path
from nemo_xtoken.data.reading import BadDocument, Fields, Slice, SourceDocument
from nemo_xtoken.data.sources import find_sources, format_of, read_slice
from nemo_xtoken.errors import ConfigError, DataError, UnavailableError
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl
from tests.small_tokenizers import LIKE_LLAMA, rank_file, sentencepiece_file, wordpiece

TEXTS = [*random_texts(40), "", "line\u2028 ends\r\n"]
ROWS = json.dumps({"text": "ok"}).encode()


def slices_of(path: Path, slice_bytes: int = 1 << 20) -> list[Slice]:
    kind = format_of(path)
    assert kind is not None
    return kind.scan(path, slice_bytes).slices


def read(
    path: Path, slice_bytes: int = 1 << 20, text_key: str = "text", student: Any = None
) -> list[SourceDocument | BadDocument]:
    fields = Fields(text_key, None, student or FakeTokenizer())
    return [document for part in slices_of(path, slice_bytes) for document in read_slice(part, fields)]


def texts(documents: list[SourceDocument | BadDocument]) -> list[str]:
    return [document.text if isinstance(document, SourceDocument) else document.reason for document in documents]


def write_parquet(path: Path, table: dict[str, list[Any]], rows_per_group: int = 7) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(table), path, row_group_size=rows_per_group)
    return path


def write_dataset(folder: Path, table: dict[str, Any], rows_per_batch: int = 7) -> Path:
    """The layout that the datasets library saves to disk."""
    arrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    folder.mkdir()
    name = "data-00000-of-00001.arrow"
    content = arrow.table(table)
    with ipc.new_stream(str(folder / name), content.schema) as stream:
        stream.write_table(content, max_chunksize=rows_per_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_text_file_is_one_document_and_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes("two\r\nparts\n\nof é".encode())
    (tmp_path / "a.txt").write_bytes(b"first")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "notes.md").write_bytes(b"not text of ours")
    files = find_sources([tmp_path])
    assert [file.name for file in files] == ["a.txt", "c.txt.gz", "b.txt"]
    assert [text for file in files for text in texts(read(file))] == ["first", "third", "two\r\nparts\n\nof é"]


def test_jsonl_lines_keep_their_text_and_blank_lines_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"body": "a\\u00e9\\ud83d\\ude42", "id": 1}\n\n  \r\n{"body": ""}\n{"body": "\u2028 z"}'.encode())
    documents = read(path, text_key="body")
    assert texts(documents) == ["aé🙂", "", "\u2028 z"]
    assert isinstance(documents[1], SourceDocument)
    assert documents[1].place.endswith("x.jsonl line 4")


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("slice_bytes", [1, 30, 500, 1 << 20])
def test_slices_of_lines_hold_every_line_once_under_its_number(
    tmp_path: Path, slice_bytes: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_xtoken.data.text_files.BLOCK_BYTES", block)
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    for content in (path.read_bytes(), path.read_bytes().rstrip(b"\n"), b"\n\n" + path.read_bytes() + b"\n\n"):
        path.write_bytes(content)
        parts = slices_of(path, slice_bytes)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert sum(part.file_bytes for part in parts) == parts[-1].stop == len(content)
        documents = read(path, slice_bytes)
        assert texts(documents) == TEXTS
        lines = content.splitlines()
        blank_lines = sum(not line.strip() for line in lines)
        assert sum(document.file_bytes for document in documents) == len(content) - blank_lines
        for document in documents:
            assert isinstance(document, SourceDocument)
            number = int(document.place.rpartition(" ")[2])
            assert json.loads(lines[number - 1])["text"] == document.text
    assert len(parts) == 1 or slice_bytes < len(content)


def test_a_byte_order_mark_at_the_front_of_a_file_is_no_text(tmp_path: Path) -> None:
    mark = "\ufeff"
    (tmp_path / "a.txt").write_text(f"{mark}one{mark}", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(f'{mark}{{"text": "{mark}two"}}\n{{"text": "three"}}\n', encoding="utf-8")
    assert texts(read(tmp_path / "a.txt")) == [f"one{mark}"]
    assert texts(read(tmp_path / "b.jsonl")) == [f"{mark}two", "three"]


def test_gzipped_lines_are_read_as_they_are_and_their_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "x.jsonl", random_texts(3_000))
    packed = tmp_path / "y.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    documents = read(packed)
    assert texts(documents) == texts(read(plain))
    assert 0.5 * packed.stat().st_size < sum(document.file_bytes for document in documents) <= packed.stat().st_size


@pytest.mark.parametrize("slice_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_rows_of_tables_are_documents(tmp_path: Path, kind: str, slice_bytes: int) -> None:
    table: dict[str, list[Any]] = {"id": list(range(len(TEXTS))), "text": TEXTS}
    source = write_parquet(tmp_path / "x.parquet", table) if kind == "parquet" else write_dataset(tmp_path / "d", table)
    (path,) = find_sources([source])
    parts = slices_of(path, slice_bytes)
    assert (len(parts) == 1) == (slice_bytes > path.stat().st_size)
    assert sum(part.file_bytes for part in parts) == path.stat().st_size
    documents = read(path, slice_bytes)
    assert texts(documents) == TEXTS
    assert isinstance(documents[30], SourceDocument)
    assert documents[30].place.endswith(" row 31")


def test_bad_rows_of_a_table_are_named_and_the_others_kept(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a", None, "b"], "n": [1, 2, 3]})
    assert texts(read(path))[0::2] == ["a", "b"]
    assert "row 2: expected a string under" in texts(read(path))[1]
    assert "expected a string under" in texts(read(path, text_key="n"))[0]
    (missing,) = read(path, text_key="body")
    assert isinstance(missing, BadDocument)
    assert 'has no column "body" (its columns: text, n)' in missing.reason


def test_one_row_that_is_not_utf_8_does_not_fail_the_others(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    content = arrow.array([b"good", b"b\xff", b"also good"], arrow.binary())
    column = arrow.Array.from_buffers(arrow.string(), len(content), content.buffers())
    path = write_parquet(tmp_path / "x.parquet", {"text": column})
    good, bad, other = texts(read(path))
    assert (good, other) == ("good", "also good")
    assert "row 2 is not UTF-8 at byte 1" in bad


def text_column(content: bytes, *ends: int) -> Any:
    arrow = pytest.importorskip("pyarrow")
    buffers = [None, arrow.py_buffer(np.array([0, *ends], np.int32).tobytes()), arrow.py_buffer(content)]
    return arrow.Array.from_buffers(arrow.string(), len(ends), buffers)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ([0, 3, 6, 1 << 30], "is damaged: .*"),
        ([0, 1 << 30, 6, 11], "is damaged at or after row 1: .*"),
        ([0, 6, 3, 11], "is damaged at or after row 1: .*"),
        ([1, 1 << 30, 0, 2], "is damaged at or after row 1: .*"),
    ],
    ids=["last end", "end inside", "end before the start", "code"],
)
def test_a_table_whose_values_lie_outside_of_it_is_damaged(tmp_path: Path, damaged: list[int], reason: str) -> None:
    """pyarrow itself ends the process with a segmentation fault."""
    arrow = pytest.importorskip("pyarrow")
    good, codes = write_jsonl(tmp_path / "good.jsonl", TEXTS), arrow.array([1, 0, 0, 2], arrow.int32())
    texts = text_column(b"onetwothree", 3, 6, 11)
    is_coded = damaged[0] == 1
    column = arrow.DictionaryArray.from_arrays(codes, texts) if is_coded else texts
    (path,) = find_sources([write_dataset(tmp_path / "d", {"text": column})])
    right = [1, 0, 0, 2] if is_coded else [0, 3, 6, 11]
    before, after = (np.array(numbers, "<i4").tobytes() for numbers in (right, damaged))
    assert path.read_bytes().count(before) == 1
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(DataError, match=rf"\.arrow {reason}") as caught:
        prepare([tmp_path / "d"], tmp_path / "out", FakeTokenizer(), None)
    assert "\n" not in str(caught.value)
    manifest = prepare([good, tmp_path / "d"], tmp_path / "out", FakeTokenizer(), None, on_error="skip")
    assert (manifest.documents, manifest.skipped_documents) == (len(TEXTS) - 1, 1)


def test_a_dataset_file_that_is_cut_short_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", {"text": TEXTS})
    (path,) = find_sources([folder])
    content = path.read_bytes()
    for length in range(0, len(content) - 8, 97):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"\.arrow(: | is )") as caught:
            prepare([folder], tmp_path / "out", FakeTokenizer(), None)
        assert "\n" not in str(caught.value)


def test_coded_texts_are_read_with_bad_and_missing_ones_apart(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    values = text_column(b"ab\xff", 1, 3)
    column = arrow.DictionaryArray.from_arrays(arrow.array([0, 1, None, 0]), values)
    (path,) = find_sources([write_dataset(tmp_path / "d", {"text": column})])
    first, bad, missing, last = texts(read(path))
    assert (first, last) == ("a", "a")
    assert "row 2 is not UTF-8 at byte 1" in bad
    assert "row 3: expected a string" in missing


def test_a_dataset_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match="holds the splits test, train of a Hugging Face dataset; name one"):
        find_sources([tmp_path])


def test_a_table_without_pyarrow_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"] + ["pyarrow", "pyarrow.parquet"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"pip install 'nemo-xtoken\[tables\]'"):
        prepare([tmp_path / "x.parquet"], tmp_path / "out", FakeTokenizer(), None, on_error="skip")


def token_file(prefix: Path, documents: list[list[int]], dtype: str = "int32") -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(np.array(document))
    return prefix


def test_student_tokens_are_kept_and_their_text_goes_to_the_teacher(tmp_path: Path) -> None:
    student, teacher = tokenizers.load(f"{rank_file(tmp_path)}?pattern=gpt2"), tokenizers.load("bytes")
    usual = [student.encode(text).ids.tolist() for text in TEXTS]
    eos = next(i for i, role in student.special_roles.items() if role == "eos")
    unusual = [i for text in TEXTS[:3] for i in text.encode()]
    source = token_file(tmp_path / "megatron", [*([*ids, eos] for ids in usual), unusual])
    manifests: list[Manifest] = []
    for name in ("megatron", "megatron.bin", "megatron.idx"):
        manifests.append(prepare([tmp_path / name], tmp_path / "out", student, teacher))
    assert [manifest.reused for manifest in manifests] == [False, True, True]
    prepare([write_jsonl(tmp_path / "x.jsonl", TEXTS)], tmp_path / "text", student, teacher)
    tokens, text = PreparedData.open(tmp_path / "out"), PreparedData.open(tmp_path / "text")
    assert source.name == "megatron"
    assert len(tokens) == len(text) + 1
    for i in range(len(text)):
        assert tokens.student_tokens(i).tolist() == text.student_tokens(i).tolist()
        assert tokens.teachers[0].tokens(i).tolist() == text.teachers[0].tokens(i).tolist()
        assert tokens.teachers[0].chunk_table(i).tolist() == text.teachers[0].chunk_table(i).tolist()
    last = tokens.document(len(text))
    assert last.student_tokens.tolist()[-1 - len(unusual) : -1] == unusual, "not as the tokenizer would cut it"
    assert len(last.chunks) == len(unusual) + 1, "a byte each, and eos"


def test_a_space_that_the_tokenizer_adds_is_no_text(tmp_path: Path) -> None:
    student = tokenizers.load(str(sentencepiece_file(tmp_path, **LIKE_LLAMA)))
    sentence = "The cat sat on 201 mats"
    ids = student.encode(sentence).ids.tolist()
    token_file(tmp_path / "megatron", [ids])
    (document,) = read(tmp_path / "megatron.bin", student=student)
    assert isinstance(document, SourceDocument)
    assert document.text == sentence
    assert document.student is not None
    assert document.student.ids.tolist() == ids
    assert document.student.ends.tolist() == student.encode(sentence).ends.tolist()


def test_token_files_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    student = tokenizers.load("bytes")
    token_file(tmp_path / "large", [[3, 4, 5], [7, 99_999]])
    token_file(tmp_path / "broken", [[3 + 0xC3, 3 + 0x28]])
    assert "document 2 has ids from 7 to 99999, bytes has" in texts(read(tmp_path / "large.bin", student=student))[1]
    assert "document 1: its tokens are not UTF-8 at byte 0" in texts(read(tmp_path / "broken.bin", student=student))[0]
    lossy = tokenizers.load(str(wordpiece(tmp_path)))
    assert "changes text" in texts(read(tmp_path / "large.bin", student=lossy))[0]
    (tmp_path / "large.idx").unlink()
    with pytest.raises(DataError, match=r"lacks the other of its two files large\.bin and large\.idx"):
        find_sources([tmp_path / "large.bin"])


def test_a_document_of_several_sequences_is_one(tmp_path: Path) -> None:
    sequences = [[3 + byte for byte in text] for text in (b"one ", b"two", b"three")]
    index = idx_path(token_file(tmp_path / "x", sequences))
    content = index.read_bytes()
    header = HEADER.pack(MAGIC, VERSION, DTYPE_CODES[np.dtype("int32")], 3, 3)
    index.write_bytes(header + content[HEADER.size : -4 * 8] + np.array([0, 2, 3], "<i8").tobytes())
    assert texts(read(tmp_path / "x.bin", student=tokenizers.load("bytes"))) == ["one two", "three"]


BAD_LINES = {
    b'{"text": "ok"}\n{"text": "a\xff"}\n': r"bad\.jsonl is not UTF-8 at byte 26 \(invalid start byte\)",
    b'{"text": "ok"}\n{"text": \n': "line 2 is not JSON: Expecting value at column",
    b'{"text": "ok"}\n\n{"content": "a", "id": 3}\n': r'3 has no text under the key "text" \(its keys: content, id\)',
    b'{"text": "ok"}\n[1]\n': "line 2: expected a JSON object .* got a list",
    b'{"text": 5}\n': 'line 1: expected a string under "text", got a int',
    b'{"text": "a\\ud83d"}\n': "line 1: .* half of a surrogate pair at character 1",
    b'{"text": ""}\n{"text": ""}\n': r"expected text in .*bad\.jsonl, got 2 documents, all of them empty",
    b"": r"expected text in .*bad\.jsonl, got 0 documents",
}


@pytest.mark.parametrize(("content", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_bad_jsonl_is_named_by_line_or_byte(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare([tmp_path / "bad.jsonl"], tmp_path / "out", FakeTokenizer(), FakeTokenizer(2))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_text_files_and_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xc3")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "table.csv").touch()
    (tmp_path / "folder").mkdir()
    for sources, message in (
        ([tmp_path / "bad.txt"], r"bad\.txt is not UTF-8 at byte 3 \(unexpected end of data\)"),
        ([tmp_path / "empty.txt"], r"expected text in .*empty\.txt, got 1 documents"),
        ([tmp_path / "none.txt"], r"at .*none\.txt, found nothing there"),
        ([tmp_path / "table.csv"], r"table\.csv is none of \.txt, \.jsonl"),
        ([tmp_path / "folder"], r"no source in .*folder"),
        ([], "an empty list of sources"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(sources, tmp_path / "out", FakeTokenizer(), None)
    with pytest.raises(ConfigError, match=r"the path of a source, got an empty one; name the current folder as \."):
        prepare([""], tmp_path / "out", FakeTokenizer(), None)


@pytest.fixture
def bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Sources with one good document each, and what is wrong with the rest of them."""
    monkeypatch.setattr("nemo_xtoken.data.text_files.MAX_DOCUMENT_BYTES", 3_000)
    lines = [b'{"text": "a\xff"}', b"{", b'{"body": "x"}', b'{"text": null}', ROWS, b'{"text": ""}']
    contents = {
        "line 1": b"\n".join(lines),
        "line 3 is longer than": ROWS + b"\n\n" + b'{"text": "' + b"x" * 9_000 + b'"}\n' + ROWS + b"\n",
        "Compressed file ended": gzip.compress(ROWS + b"\n" + json.dumps({"text": random_texts(90)}).encode())[:-60],
        "Not a gzipped file": b"plain",
        "huge.txt is longer": b"x" * 3_001,
        "none.txt is not UTF-8": b"\xff",
    }
    names = ("lines.jsonl", "long.jsonl", "cut.jsonl.gz", "plain.jsonl.gz", "huge.txt", "none.txt")
    found = {}
    for (reason, content), name in zip(contents.items(), names, strict=True):
        found[reason] = tmp_path / name
        found[reason].write_bytes(content)
    return found


def test_with_skip_bad_documents_are_counted_and_the_others_kept(tmp_path: Path, bad_sources: dict[str, Path]) -> None:
    paths = list(bad_sources.values())
    manifest = prepare(paths, tmp_path / "out", FakeTokenizer(), FakeTokenizer(2), on_error="skip")
    assert manifest == Manifest.load(tmp_path / "out")
    assert (manifest.documents, manifest.empty_documents, manifest.skipped_documents) == (1 + 2 + 1, 1, 4 + 1 + 4)
    reasons = "\n".join(manifest.skipped_examples)
    assert len(manifest.skipped_examples) == 9
    for reason in [*bad_sources, 'line 3 has no text under the key "text" (its keys: body)', "line 2 is not JSON"]:
        assert reason in reasons or reason == "line 1"
    assert prepare(paths, tmp_path / "out", FakeTokenizer(), FakeTokenizer(2), on_error="skip").reused


def test_what_was_prepared_without_bad_documents_is_not_taken_for_all_of_the_text(tmp_path: Path) -> None:
    path, sides = tmp_path / "x.jsonl", (FakeTokenizer(), FakeTokenizer(2))
    path.write_bytes(ROWS + b"\n{\n")
    prepare([path], tmp_path / "out", *sides, on_error="skip")
    message = r"without 1 documents .*, the first: .*line 2 is not JSON: .*; take it as it is with on_error skip"
    with pytest.raises(DataError, match=message):
        prepare([path], tmp_path / "out", *sides)
    with pytest.raises(DataError, match=r"line 2 is not JSON: Expecting"):
        prepare([path], tmp_path / "out", *sides, overwrite=True)
    assert prepare([path], tmp_path / "out", *sides, on_error="skip", overwrite=True).reused


def test_with_stop_each_of_them_is_an_error(tmp_path: Path, bad_sources: dict[str, Path]) -> None:
    for path in bad_sources.values():
        with pytest.raises(DataError, match=path.name):
            prepare([path], tmp_path / "out", FakeTokenizer(), None)
        assert not (tmp_path / "out").exists()


def test_only_the_first_reasons_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(ROWS + b"\n" + b"{\n" * 30)
    manifest = prepare([path], tmp_path / "out", FakeTokenizer(), None, on_error="skip")
    assert (manifest.skipped_documents, len(manifest.skipped_examples)) == (30, 10)
    assert "line 2 " in manifest.skipped_examples[0]


def test_nothing_but_bad_documents_is_an_error_even_with_skip(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"{\n" * 3)
    with pytest.raises(
        DataError, match=r"got 0 documents, .* and 3 that could not be used, the first: .* 1 is not JSON"
    ):
        prepare([tmp_path / "x.jsonl"], tmp_path / "out", FakeTokenizer(), None, on_error="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_file_that_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    """Its permissions are real; root, whom they do not bind, becomes somebody else in a process of its own."""
    good, locked = write_jsonl(tmp_path / "good.jsonl", TEXTS), write_jsonl(tmp_path / "locked.jsonl", TEXTS)
    locked.chmod(0)
    in_a_process_without_rights(tmp_path, prepare_beside_a_locked_file, good, locked)
    manifest = Manifest.load(tmp_path / "own" / "out")
    assert (manifest.documents, manifest.skipped_documents) == (len(TEXTS) - 1, 1)
    assert "Permission denied" in manifest.skipped_examples[0]
    assert [Path(source.path) for source in manifest.sources] == [good]


def test_a_folder_that_cannot_be_listed_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "all" / "locked").mkdir(parents=True)
    (tmp_path / "all" / "half" / "v1.0").mkdir(parents=True)
    for name in ("good.jsonl", "locked/hidden.jsonl", "half/hidden.jsonl", "half/v1.0/hidden.jsonl"):
        write_jsonl(tmp_path / "all" / name, TEXTS)
    (tmp_path / "all" / "locked").chmod(0)
    (tmp_path / "all" / "half").chmod(0o444)
    in_a_process_without_rights(tmp_path, prepare_beside_locked_folders, tmp_path / "all")
    manifest = Manifest.load(tmp_path / "own" / "out")
    assert (manifest.documents, manifest.skipped_documents) == (len(TEXTS) - 1, 3)
    places = ("half/hidden.jsonl", "half/v1.0", "locked")
    assert manifest.skipped_examples == tuple(
        f"cannot read {tmp_path}/all/{name}: Permission denied" for name in places
    )


def prepare_beside_locked_folders(folder: Path, everything: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*half/hidden\.jsonl: Permission denied"):
        prepare([everything], folder / "out", FakeTokenizer(), None)
    with pytest.raises(DataError, match=r"cannot read .*locked: Permission denied"):
        prepare([everything / "locked"], folder / "out", FakeTokenizer(), None)
    with pytest.raises(DataError, match=r"cannot read .*locked/x\.jsonl: Permission denied"):
        prepare([everything / "locked" / "x.jsonl"], folder / "out", FakeTokenizer(), None)
    prepare([everything], folder / "out", FakeTokenizer(), None, on_error="skip")


def prepare_beside_a_locked_file(folder: Path, good: Path, locked: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*locked\.jsonl: Permission denied"):
        prepare([good, locked], folder / "out", FakeTokenizer(), None)
    assert not (folder / "out").exists()
    prepare([good, locked], folder / "out", FakeTokenizer(), None, on_error="skip")


def in_a_process_without_rights(tmp_path: Path, function: Any, *arguments: Path) -> None:
    """Call function(folder, *arguments) in a forked process that is not root; folder is a new one of its own."""
    nobody = 65534
    folder = tmp_path / "own"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, nobody, nobody)
        for parent in (tmp_path, *tmp_path.parents[:2]):  # pytest's own folders are closed to others
            parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(nobody)
                os.setuid(nobody)
            function(folder, *arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_is_gone_or_a_pipe_before_it_is_read_is_left_out_and_counted(tmp_path: Path) -> None:
    good, gone = write_jsonl(tmp_path / "good.jsonl", TEXTS), write_jsonl(tmp_path / "gone.jsonl", TEXTS)
    part = next(iter(slices_of(gone, 1 << 20)))
    gone.unlink()
    [bad] = read_slice(part, Fields("text", None, FakeTokenizer()))
    assert isinstance(bad, BadDocument)
    assert bad.reason == f"cannot read {gone}: No such file or directory"
    os.mkfifo(gone)
    with pytest.raises(DataError, match=r"gone\.jsonl is no regular file"):
        prepare([good, gone], tmp_path / "out", FakeTokenizer(), None)


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "all" / "sub").mkdir(parents=True)
    for name in ("all/a.txt", "all/sub/b.txt", "elsewhere/deep/c.txt", "elsewhere/d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "all" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "file.txt").symlink_to(tmp_path / "elsewhere" / "d.txt")
    (tmp_path / "all" / "sub" / "itself").symlink_to(tmp_path / "all" / "sub")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "all")
    found = [str(path.relative_to(tmp_path / "all")) for path in find_sources([tmp_path / "all"])]
    assert found == ["a.txt", "file.txt", "folder/d.txt", "folder/deep/c.txt", "sub/b.txt"]


def test_what_is_no_file_in_a_folder_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    (folder / "folder.txt").mkdir(parents=True)
    write_jsonl(folder / "good.jsonl", TEXTS)
    for name in ("gone.txt", "gone", "gone.csv"):
        (folder / name).symlink_to(tmp_path / "nowhere")
    (folder / "turning.txt").symlink_to(folder / "turning.txt")
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(DataError, match=r"cannot read .*/gone: No such file or directory"):
        prepare([folder], tmp_path / "out", FakeTokenizer(), None)
    manifest = prepare([folder], tmp_path / "out", FakeTokenizer(), None, on_error="skip")
    assert (manifest.documents, manifest.skipped_documents) == (len(TEXTS) - 1, 4)
    reasons = "\n".join(manifest.skipped_examples)
    for reason in ("gone.txt: No such", "turning.txt: Too many levels", "pipe.jsonl is no regular file"):
        assert reason in reasons


def test_a_file_that_a_dataset_on_disk_lacks_is_left_out_and_counted(tmp_path: Path) -> None:
    good, folder = write_jsonl(tmp_path / "good.jsonl", TEXTS), write_dataset(tmp_path / "d", {"text": TEXTS})
    (path,) = find_sources([folder])
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*\.arrow: No such file or directory"):
        prepare([good, folder], tmp_path / "out", FakeTokenizer(), None)
    manifest = prepare([good, folder], tmp_path / "out", FakeTokenizer(), None, on_error="skip")
    assert (manifest.documents, manifest.skipped_documents) == (len(TEXTS) - 1, 1)


def test_of_many_keys_an_error_names_the_first(tmp_path: Path) -> None:
    record = {f"key{i}": "x" for i in range(5_000)}
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"k" * 9_000: 1}))
    first, second = texts(read(tmp_path / "x.jsonl"))
    assert "(its keys: key0, key1, " in first
    assert "key9 and 4990 more)" in first
    assert len(second) < 600
    (columns,) = texts(read(write_parquet(tmp_path / "x.parquet", {name: [value] for name, value in record.items()})))
    assert "key9 and 4990 more)" in columns


def test_a_text_that_a_tokenizer_refuses_is_skipped_alone(tmp_path: Path) -> None:
    class Picky(FakeTokenizer):
        def encode(self, text: str) -> Any:
            if text == "bad":
                raise DataError("picky: I don't want it")
            return super().encode(text)

    path = write_jsonl(tmp_path / "x.jsonl", ["good", "bad", "fine"])
    manifest = prepare([path], tmp_path / "out", FakeTokenizer(), Picky(2), on_error="skip")
    assert (manifest.documents, manifest.skipped_documents) == (2, 1)
    assert manifest.skipped_examples[0].endswith("x.jsonl line 2: picky: I don't want it")
    with pytest.raises(DataError, match=r"line 2: picky"):
        prepare([path], tmp_path / "other", FakeTokenizer(), Picky(2))
