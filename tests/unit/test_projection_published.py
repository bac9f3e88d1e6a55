"""Exact matches of Llama-3.1's text tokens with published tokenizers, and what building their W costs."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.projection import build
from nemo_xtoken.tokenizers import Tokenizer

EXACT = {
    "qwen": 109_566,
    "o200k_base": 103_245,
    "gemma3": 86_434,
    "tekken": 71_640,
    "deepseek_v3": 70_663,
    "smollm2": 39_310,
}
"""Of 128,000."""


@pytest.fixture(scope="module")
def llama3(all_tokenizers: Mapping[str, str]) -> Tokenizer:
    return tokenizers.load(all_tokenizers["llama3"])


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_exact_matches_with_llama3_are_the_known_ones(
    llama3: Tokenizer, all_tokenizers: Mapping[str, str], name: str
) -> None:
    teacher = tokenizers.load(all_tokenizers[name])
    start = time.process_time()
    matrix = build(llama3, teacher)
    assert time.process_time() - start < 5  # CPU-seconds; 1 to 2 where nothing else runs
    is_text = np.ones(llama3.vocab_size, np.bool_)
    is_text[list(llama3.special_roles)] = False
    assert int(is_text.sum()) == 128_000
    assert int(matrix.exact_rows[is_text].sum()) == EXACT[name]
    # The same count without W: bytes that both vocabularies have.
    pieces = {teacher.token_bytes(i) for i in range(teacher.vocab_size) if i not in teacher.special_roles}
    assert sum(llama3.token_bytes(int(i)) in pieces for i in is_text.nonzero()[0]) == EXACT[name]
