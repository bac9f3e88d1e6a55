"""The known answers for published pairs of every family, Llama 3 as the student."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nemo_xtoken.projection import TokenClass, audit, build, empty_rows
from tests.conftest import LlamaPair

pytestmark = pytest.mark.slow

KNOWN = {"qwen": (109_566, 1100), "o200k_base": (103_245, 0), "tekken": (71_640, 1100), "gemma3": (86_434, 1100)}
"""Teacher -> Llama 3's text tokens that it has byte for byte, and the 2- and 3-digit numerals that it lacks."""

NUM_TEXT_TOKENS = 128_000


@pytest.mark.parametrize("name", KNOWN)
def test_exact_tokens_missing_numerals_and_the_loss_that_follows(
    name: str, llama_pair: Callable[[str], LlamaPair]
) -> None:
    llama, teacher, matrix, _ = llama_pair(name)
    result = audit(matrix, llama, teacher)
    numerals = [result.classes[kind] for kind in (TokenClass.TWO_DIGITS, TokenClass.THREE_DIGITS)]
    exact, missing = KNOWN[name]
    assert int(matrix.exact_rows[:NUM_TEXT_TOKENS].sum()) == exact
    assert [coverage.total for coverage in numerals] == [100, 1000]
    assert sum(coverage.uncommon for coverage in numerals) == missing
    assert (result.recommended == "p_kl") == (missing > 0)


@pytest.mark.parametrize(
    "name", ["qwen", "o200k_base", "r50k_base", "tekken", "mistral_v1", "mistral_v3", "gemma3", "deepseek_v3", "byt5"]
)
def test_no_row_is_arbitrary_and_every_empty_one_is_explained(
    name: str, llama_pair: Callable[[str], LlamaPair]
) -> None:
    llama, teacher, matrix, _ = llama_pair(name)
    np.testing.assert_allclose(matrix.weights.sum(axis=1)[~matrix.empty_rows], 1, atol=1e-5)
    special = np.isin(matrix.indices, list(teacher.special_roles)).any(axis=1)
    assert set(np.flatnonzero(special).tolist()) <= set(llama.special_roles)
    explained = [token_id for ids in empty_rows(matrix, llama).values() for token_id in ids]
    assert sorted(explained) == np.flatnonzero(matrix.empty_rows).tolist()
    assert not matrix.empty_rows[:NUM_TEXT_TOKENS].any(), "all of these know every byte"
    projected = np.flatnonzero(~matrix.exact_rows & ~matrix.empty_rows)
    for row in np.random.default_rng(0).choice(projected, 300, replace=False).tolist():
        pieces = b"".join(teacher.token_bytes(index) for index in matrix.indices[row].tolist() if index >= 0)
        assert set(pieces) <= set(llama.token_bytes(row)) | {ord(" ")}, llama.token_bytes(row)


def test_the_reverse_pass_reaches_more_of_the_teacher(llama_pair: Callable[[str], LlamaPair]) -> None:
    llama, teacher, without, _ = llama_pair("qwen")
    matrix = build(llama, teacher, reverse_pass=True)
    np.testing.assert_array_equal(matrix.exact_rows, without.exact_rows)
    np.testing.assert_array_equal(matrix.indices[matrix.exact_rows], without.indices[matrix.exact_rows])
    before, after = (len(set(w.indices.ravel().tolist())) for w in (without, matrix))
    assert after - before == 1300
