from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.cli.app import run
from nemo_xtoken.data.aligned import AlignedDocument, AlignedTeacher
from nemo_xtoken.data.chunk_counts import ChunkCounts, count_chunks
from nemo_xtoken.errors import DataError
from tests import small_tokenizers as small


def test_a_document_is_counted_by_kind() -> None:
    """bos on the student's side only, 1:1, 1:2, 2:1, 2:2, inexact, and eos on both sides."""
    table = [(1, 2, 0, 1, 1), (2, 3, 1, 3, 1), (3, 5, 3, 4, 1), (5, 7, 4, 6, 1), (7, 8, 6, 7, 0), (8, 9, 7, 8, 1)]
    document = AlignedDocument(
        student=np.zeros(9, np.int32),
        teachers=(AlignedTeacher(np.zeros(8, np.int32), np.array(table, np.int32)),),
        num_bytes=9,
        loss_start=0,
        loss_bytes=9,
    )
    assert ChunkCounts.of(document) == ChunkCounts(
        documents=1,
        student_tokens=9,
        teacher_tokens=8,
        chunks=6,
        one_to_one=2,
        one_to_many=1,
        many_to_one=1,
        many_to_many=1,
        inexact=1,
        student_gaps=1,
        teacher_gaps=0,
        seen=4,  # not the first, which the teacher has no predictor for, nor the inexact one
        student_seen_tokens=6,
        teacher_seen_tokens=6,
    )


def test_files_are_counted_document_by_document(tmp_path: Path) -> None:
    teacher = tokenizers.load(f"{small.rank_file(tmp_path)}?pattern=gpt2")
    student = tokenizers.load("bytes")
    texts = ["the cat", "201", ""]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    counts = count_chunks([path], student, teacher)
    assert (counts.documents, counts.empty_documents) == (2, 1)
    assert (counts.documents, counts.student_tokens) == (2, len("the cat") + len("201") + 2)
    assert counts.one_to_one + counts.many_to_one == counts.chunks
    assert counts.student_seen_tokens == counts.student_tokens - len("the") - len("201")
    once = tmp_path / "once.txt"
    once.write_text("the cat")
    assert count_chunks([once, once], student, teacher).chunks == 2 * count_chunks([once], student, teacher).chunks


def test_documents_without_tokens_on_a_side_are_counted_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat", "   ", "", "201")))
    command = ["align", "--student", "bytes", "--teacher", str(small.wordpiece(tmp_path)), "--stats", str(path)]
    assert run([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["documents"], counts["empty_documents"]) == (2, 2)
    assert run(command) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "documents without tokens" in line)
    assert "2" in line
    assert "50.00 % of" in line
    path.write_text(json.dumps({"text": "  "}))
    assert run(command) == 1
    assert "got none: 1 documents, all of them without tokens" in " ".join(capsys.readouterr().err.split())


def test_bad_and_empty_sources_are_refused(tmp_path: Path) -> None:
    student = tokenizers.load("bytes")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        count_chunks([tmp_path / "bad.txt"], student, student)
    with pytest.raises(DataError, match=r"expected text in .*empty\.txt, got none"):
        count_chunks([tmp_path / "empty.txt"], student, student)
