from __future__ import annotations

import unicodedata
from pathlib import Path

from nemo_xtoken import tokenizers
from nemo_xtoken.data import PackedDataset, PreparedData, prepare
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import IGNORED_LABEL
from tests.fake_tokenizers import FakeTokenizer, random_texts, write_jsonl

TEXTS = [
    "Tom had 1234 apples and ate 56; 1178 are left.\n\n#### 1178",
    "  indented\tcode\r\n    return x[10:100]",
    "日本語 🙂 café, cafe\u0301, ﬁne",
    "<|endoftext|> is text here, <s> too",
    "1" * 300,
    *random_texts(40),
]


def composed(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The ids' bytes, equal for text that one of two tokenizers composes (NFC) and the other does not."""
    text = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="surrogateescape")
    return unicodedata.normalize("NFC", text)


def check_samples(folder: Path, student: Tokenizer, teacher: Tokenizer) -> PreparedData:
    """Prepare the texts and hold every chunk of every sample to its bytes; returns the data."""
    prepare([write_jsonl(folder / "text.jsonl", TEXTS)], folder / "out", student, teacher)
    data = PreparedData.open(folder / "out")
    dataset = PackedDataset(data, 128, 160, seed=0)
    eos_chunks = 0
    for i in range(dataset.epoch_samples(0)):
        sample = dataset.sample(i)
        (aligned,) = sample.teachers
        for (a, b, x, y), exact in zip(aligned.chunk_rows.tolist(), aligned.chunk_mask.tolist(), strict=True):
            ours, theirs = sample.student.labels[a:b].tolist(), aligned.labels[x:y].tolist()
            assert ours
            assert theirs
            assert IGNORED_LABEL not in ours + theirs
            assert composed(student, ours) == composed(teacher, theirs) or not exact
            eos_chunks += ours == [data.manifest.student.eos_id]
    both_end = role_id(student, "eos") is not None and role_id(teacher, "eos") is not None
    assert (eos_chunks > 0) == both_end
    return data


def test_the_byte_tokenizer_against_another(tmp_path: Path) -> None:
    data = check_samples(tmp_path, FakeTokenizer(6, vocab_size=300), tokenizers.load("bytes"))
    assert data.manifest.documents == len(TEXTS)
    assert data.manifest.teachers[0].chunks > 0.5 * data.manifest.student.tokens


def test_cl100k_against_qwen(tmp_path: Path, real_tokenizers: Path) -> None:
    student = tokenizers.load(f"{real_tokenizers / 'cl100k_base.tiktoken'}?pattern=cl100k")
    teacher = tokenizers.load(f"{real_tokenizers / 'qwen.tiktoken'}?pattern=qwen")
    data = check_samples(tmp_path, student, teacher)
    assert 0.5 < data.manifest.teachers[0].one_to_one_share < 1
    assert data.manifest.teachers[0].inexact_share < 0.05
    assert data.student_lengths.tolist() != data.teachers[0].lengths.tolist()
