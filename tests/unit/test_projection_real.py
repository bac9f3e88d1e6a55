"""The known answers for a published pair: cl100k as the student, Qwen as the teacher."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from nemo_xtoken import tokenizers
from nemo_xtoken.projection import ProjectionMatrix, TokenClass, audit, build, common_set
from nemo_xtoken.tokenizers.protocol import Tokenizer

Pair = tuple[Tokenizer, Tokenizer]


@pytest.fixture(scope="module")
def pair(real_tokenizers: Path) -> Pair:
    student = tokenizers.load(f"{real_tokenizers}/cl100k_base.tiktoken?pattern=cl100k")
    return student, tokenizers.load(f"{real_tokenizers}/qwen.tiktoken?pattern=qwen")


@pytest.fixture(scope="module")
def matrix(pair: Pair) -> ProjectionMatrix:
    return build(*pair)


def test_the_teacher_covers_no_multi_digit_numeral_and_the_audit_says_p_kl(
    matrix: ProjectionMatrix, pair: Pair
) -> None:
    result = audit(matrix, *pair)
    coverage = {name: (result.classes[name].total, result.classes[name].common) for name in result.classes}
    assert coverage[TokenClass.TWO_DIGITS] == (100, 0)
    assert coverage[TokenClass.THREE_DIGITS] == (1000, 0)
    assert coverage[TokenClass.ONE_DIGIT] == (10, 10)
    assert coverage[TokenClass.PUNCTUATION] == (64, 64)
    assert result.recommended == "p_kl"


def test_everything_but_the_numerals_is_exact(matrix: ProjectionMatrix) -> None:
    text_rows = np.arange(100256)
    assert int((~matrix.exact_rows[text_rows]).sum()) == 1100
    assert len(common_set(matrix)[0]) == matrix.num_exact


def test_201_has_the_weights_of_the_paper(matrix: ProjectionMatrix, pair: Pair) -> None:
    student, teacher = pair
    (row,) = student.encode("201").ids
    assert [teacher.token_bytes(int(index)) for index in matrix.indices[row, :3]] == [b"2", b"0", b"1"]
    np.testing.assert_allclose(matrix.weights[row], [0.9009, 0.0901, 0.0090, 0], atol=5e-5)


def test_111_weighs_on_one_token_and_is_not_exact(matrix: ProjectionMatrix, pair: Pair) -> None:
    student, teacher = pair
    (row,) = student.encode("111").ids
    assert teacher.token_bytes(int(matrix.indices[row, 0])) == b"1"
    assert matrix.weights[row].tolist() == [1, 0, 0, 0]
    assert not matrix.exact_rows[row]


def test_no_special_token_of_the_student_stands_for_text(matrix: ProjectionMatrix, pair: Pair) -> None:
    student, teacher = pair
    special = list(student.special_roles)
    partners = matrix.indices[special][matrix.indices[special] >= 0]
    assert set(partners.tolist()) <= set(teacher.special_roles)


def test_the_other_way_round_long_tokens_are_cut_into_the_teachers_pieces(pair: Pair) -> None:
    teacher, student = pair
    matrix = build(student, teacher)
    projected = np.flatnonzero(~matrix.exact_rows & ~matrix.empty_rows)
    assert len(projected) > 40_000
    for row in np.random.default_rng(0).choice(projected, 200, replace=False):
        token = student.token_bytes(int(row))
        pieces = [teacher.token_bytes(int(index)) for index in matrix.indices[row] if index >= 0]
        assert token.startswith(pieces[0])
        assert all(piece in token for piece in pieces)


def test_building_takes_seconds_of_one_cpu(pair: Pair) -> None:
    start = time.process_time()
    build(*pair)
    assert time.process_time() - start < 10
