from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.data import Manifest, PackedDataset, PreparedData, collate, prepare, sequential_batches
from nemo_xtoken.data.pieces import cut_pieces
from nemo_xtoken.errors import DataError
from nemo_xtoken.types import IGNORED_LABEL
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl
from tests.small_tokenizers import rank_file

STUDENT, TEACHER = FakeTokenizer(3), FakeTokenizer(5, salt=1, bos=False, inexact_every=9)
PROMPTS = ["", *random_texts(40, seed=1, longest=90)]
TEXTS = random_texts(41, seed=2, longest=90)


def write(path: Path, prompts: list[str] = PROMPTS, texts: list[str] = TEXTS) -> Path:
    lines = [json.dumps({"question": p, "answer": t}) for p, t in zip(prompts, texts, strict=True)]
    path.write_text("\n".join(lines))
    return path


def prepare_answers(source: Path, out: Path, teacher: FakeTokenizer | None) -> Manifest:
    return prepare([source], out, STUDENT, teacher, text_key="answer", prompt_key="question")


def prepared_in(folder: Path) -> PreparedData:
    prepare_answers(write(folder / "x.jsonl"), folder / "out", TEACHER)
    return PreparedData.open(folder / "out")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared_in(tmp_path_factory.mktemp("prompts"))


def byte_starts(tokens: list[int]) -> list[int]:
    """Where each token of a whole document begins in its text."""
    return np.cumsum([0, *(len(STUDENT.token_bytes(token)) for token in tokens)]).tolist()[:-1]


def test_a_document_is_prompt_and_text_and_the_border_is_kept(prepared: PreparedData) -> None:
    assert (prepared.manifest.prompt_key, prepared.manifest.text_key) == ("question", "answer")
    straddling = 0
    for i, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        tokens = prepared.student_tokens(i).tolist()
        assert b"".join(map(STUDENT.token_bytes, tokens)) == (prompt + text).encode()
        starts, border, first = byte_starts(tokens), len(prompt.encode()), int(prepared.loss_starts[i])
        assert starts[first] >= border
        assert first == 0 or starts[first - 1] < border
        assert prepared.loss_bytes[i] == len((prompt + text).encode()) - starts[first]
        straddling += starts[first] > border
    assert prepared.loss_starts[0] == 0
    assert straddling > 5


@pytest.mark.parametrize("lengths", [(2000, 2000), (40, 30)])
def test_loss_and_chunks_are_of_the_text_alone_and_no_text_is_lost(
    prepared: PreparedData, lengths: tuple[int, int]
) -> None:
    """Each row and chunk that counts is looked up in the bytes of its document."""
    dataset = PackedDataset(prepared, *lengths, seed=3, exact_chunks_only=False)
    pieces, builder = dataset.pieces, dataset._builder
    learnt_tokens = straddling = 0
    for p in range(len(pieces)):
        sample, i = builder.build(np.array([p])), int(pieces.document[p])
        tokens = prepared.student_tokens(i).tolist()
        starts, border, at = byte_starts(tokens), len(PROMPTS[i].encode()), int(pieces.student_start[p])
        counted = [at + row + 1 for row in np.flatnonzero(sample.loss_mask).tolist()]
        usual = range(at + 1, int(pieces.student_end[p]))
        assert counted == [token for token in usual if starts[token] >= border]
        assert (sample.student.labels != IGNORED_LABEL).sum() == len(usual), "labels stay: a mask leaves them out"
        learnt_tokens += len(counted)
        (aligned,) = sample.teachers
        for (first, last, _, _), counts in zip(aligned.chunk_rows.tolist(), aligned.chunk_mask.tolist(), strict=True):
            assert counts == (starts[at + first + 1] >= border)
            straddling += not counts and starts[at + last] >= border > starts[at + first + 1]
            assert not counts or sample.loss_mask[first:last].all()
    lost_first_tokens = len(pieces)
    everything = sum(prepared.student_lengths - prepared.loss_starts)
    assert everything - lost_first_tokens <= learnt_tokens <= everything
    assert straddling > 3 or lengths[0] < 100


def test_a_collated_batch_carries_the_mask(prepared: PreparedData) -> None:
    samples = [PackedDataset(prepared, 300, 300, seed=3).sample(i) for i in range(3)]
    batch = collate(samples)
    assert batch.student_loss_mask.tolist() == [sample.loss_mask.astype(float).tolist() for sample in samples]
    assert 0.2 < batch.student_loss_mask.sum() / (batch.student_labels != IGNORED_LABEL).sum() < 0.8
    assert batch.chunks.mask.tolist() == [bool(m) for sample in samples for m in sample.teachers[0].chunk_mask]


def test_pieces_of_prompt_alone_are_left_out_and_counted(prepared: PreparedData) -> None:
    pieces = cut_pieces(prepared, 20, [20])
    assert pieces.prompt_pieces > 10
    assert (pieces.student_end > prepared.loss_starts[pieces.document]).all()
    assert set(pieces.document.tolist()) == set(range(len(prepared)))
    assert cut_pieces(prepared, 2000, [2000]).prompt_pieces == 0


def test_the_bytes_of_an_evaluation_are_those_that_are_learnt(prepared: PreparedData) -> None:
    for lengths in ((2000, 2000), (40, 40)):
        evaluated = list(sequential_batches(prepared, *lengths, 2))
        assert sum(num_bytes for _, num_bytes in evaluated) == prepared.loss_bytes.sum() < prepared.document_bytes.sum()


def test_without_a_prompt_key_everything_is_learnt(tmp_path: Path) -> None:
    prepare([write_jsonl(tmp_path / "x.jsonl", TEXTS)], tmp_path / "out", STUDENT, TEACHER)
    prepared = PreparedData.open(tmp_path / "out")
    assert prepared.loss_starts.tolist() == [0] * len(TEXTS)
    assert prepared.loss_bytes.tolist() == prepared.document_bytes.tolist()
    sample = PackedDataset(prepared, 100, 100, seed=1).sample(0)
    assert (sample.loss_mask == (sample.student.labels != IGNORED_LABEL)).all()


def test_a_prompt_without_text_is_empty_and_a_missing_prompt_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", ["a", "b"], ["", "c"])
    manifest = prepare_answers(source, tmp_path / "out", None)
    assert (manifest.documents, manifest.empty_documents) == (1, 1)
    write_jsonl(tmp_path / "y.jsonl", ["a"], key="answer")
    with pytest.raises(DataError, match='line 1 has no text under the key "question"'):
        prepare_answers(tmp_path / "y.jsonl", tmp_path / "other", None)
    (tmp_path / "z.txt").write_text("a")
    with pytest.raises(DataError, match=r"z\.txt has no keys or columns, so no prompt"):
        prepare_answers(tmp_path / "z.txt", tmp_path / "other", None)


def test_another_prompt_key_is_other_text(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text('{"a": "one", "b": "two", "text": "three"}\n')
    first = prepare([source], tmp_path / "out", STUDENT, TEACHER, prompt_key="a")
    assert prepare([source], tmp_path / "out", STUDENT, TEACHER, prompt_key="a").reused
    for other in ("b", None):
        with pytest.raises(DataError, match="other text, tokenizers or version"):
            prepare([source], tmp_path / "out", STUDENT, TEACHER, prompt_key=other)
    assert PreparedData.open(tmp_path / "out").manifest == first


def test_prompts_and_texts_come_from_the_columns_of_a_table(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table = {"answer": TEXTS, "id": list(range(len(TEXTS))), "question": PROMPTS}
    parquet.write_table(arrow.table(table), tmp_path / "x.parquet", row_group_size=10)
    student = tokenizers.load(f"{rank_file(tmp_path)}?pattern=gpt2")
    for name, source in (("table", tmp_path / "x.parquet"), ("lines", write(tmp_path / "x.jsonl"))):
        prepare([source], tmp_path / name, student, TEACHER, text_key="answer", prompt_key="question")
    for file in ("student.bin", "student.idx", "chunks.bin", "documents.npy"):
        assert (tmp_path / "table" / file).read_bytes() == (tmp_path / "lines" / file).read_bytes()
