"""Preparing more text takes no more memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.data import prepare
from nemo_xtoken.tokenizers import Tokenizer
from tests.fake_tokenizers import random_texts, write_jsonl
from tests.small_tokenizers import rank_file

PART = 40_000
"""Bytes of a block, of a batch and of a shard in these tests; all are a million where nothing sets them."""


def set_part(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for name in ("shards.SHARD_BYTES", "shard_writer.BATCH_CHARACTERS", "text_files.BLOCK_BYTES"):
        monkeypatch.setattr(f"nemo_xtoken.data.{name}", size)


def peak(folder: Path, sides: tuple[Tokenizer, Tokenizer], num_parts: int) -> int:
    """The most bytes that Python and numpy hold at a time while a text of so many parts is prepared in this process."""
    texts = random_texts(20)
    source = write_jsonl(folder / "text.jsonl", texts * (num_parts * PART // sum(map(len, texts))))
    tracemalloc.start()
    try:
        prepare([source], folder / "out", *sides, overwrite=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_a_part_and_not_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = tokenizers.load(f"{rank_file(tmp_path)}?pattern=gpt2"), tokenizers.load("bytes")
    set_part(monkeypatch, PART)
    peak(tmp_path, sides, 1)  # makes what is made once, such as the tables of the vocabularies
    few, many = peak(tmp_path, sides, 2), peak(tmp_path, sides, 8)
    assert many < 1.2 * few
    set_part(monkeypatch, 8 * PART)
    assert peak(tmp_path, sides, 7) > 1.5 * many
