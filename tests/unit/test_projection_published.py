"""Exact matches of Llama-3.1's text tokens with published tokenizers, and what building their W costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LlamaPair

EXACT = {
    "qwen": 109_566,
    "o200k_base": 103_245,
    "gemma3": 86_434,
    "tekken": 71_640,
    "deepseek_v3": 70_663,
    "smollm2": 39_310,
}
"""Of 128,000."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_exact_matches_with_llama3_are_the_known_ones(llama_pair: Callable[[str], LlamaPair], name: str) -> None:
    llama3, teacher, matrix, cpu_seconds = llama_pair(name)
    assert cpu_seconds < 5  # 1 to 2 where nothing else runs
    is_text = np.ones(llama3.vocab_size, np.bool_)
    is_text[list(llama3.special_roles)] = False
    assert int(is_text.sum()) == 128_000
    assert int(matrix.exact_rows[is_text].sum()) == EXACT[name]
    # The same count without W: bytes that both vocabularies have.
    pieces = {teacher.token_bytes(i) for i in range(teacher.vocab_size) if i not in teacher.special_roles}
    assert sum(llama3.token_bytes(int(i)) in pieces for i in is_text.nonzero()[0]) == EXACT[name]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_w_of_llama_3_1_and_qwen_3_takes_at_most_5_cpu_seconds_and_1_gb(model_tokenizers: Path) -> None:
    benchmark = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_projection.py"
    pair = (str(model_tokenizers / name) for name in ("llama3_1", "qwen3"))
    command = [sys.executable, str(benchmark), "--json", "--pair", *pair]
    (measured,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=550).stdout)
    assert measured["build_s"] < 5
    assert measured["peak_mb"] < 1000  # of the whole process, with its libraries
    assert measured["exact"] == EXACT["qwen"] + 2  # special tokens that have a partner
    assert (measured["projected"], measured["empty"]) == (18_434, 254)
