"""The reverse pass: teacher tokens without weight go to the student's pieces of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.projection import build
from tests.longest_match import DIGITS, LongestMatch, entries


def test_a_teacher_token_without_weight_goes_to_the_students_pieces() -> None:
    student, teacher = LongestMatch([b"ab", b"cd"]), LongestMatch([b"a", b"b", b"c", b"d", b"abcd"])
    without = build(student, teacher)
    assert [set(entries(without, row)) for row in range(2)] == [{0, 1}, {2, 3}]
    matrix = build(student, teacher, reverse_pass=True)
    assert entries(matrix, 0) == pytest.approx({0: 0.9 / 1.89, 4: 0.9 / 1.89, 1: 0.09 / 1.89}, rel=1e-6)
    assert entries(matrix, 1) == pytest.approx({2: 0.9 / 1.08, 3: 0.09 / 1.08, 4: 0.09 / 1.08}, rel=1e-6)
    assert matrix.reverse_pass
    assert not without.reverse_pass


def test_exact_rows_do_not_change() -> None:
    student, teacher = LongestMatch([b"a", b"b", b"xy"]), LongestMatch([b"a", b"b", b"ab", b"x", b"y"])
    matrix, without = build(student, teacher, reverse_pass=True), build(student, teacher)
    np.testing.assert_array_equal(matrix.indices, without.indices)
    np.testing.assert_array_equal(matrix.weights, without.weights)
    assert entries(matrix, 0) == {0: 1.0}


def test_a_teacher_token_that_has_weight_gets_no_more() -> None:
    student, teacher = LongestMatch([b"12", b"3", b"123"]), LongestMatch([*DIGITS, b"123"])
    student.ids.pop(b"123")
    assert student.encode("123").ids.tolist() == [0, 1]
    matrix = build(student, teacher, reverse_pass=True)
    assert entries(matrix, 0) == pytest.approx({1: 1 / 1.1, 2: 0.1 / 1.1}, rel=1e-6)
    assert entries(matrix, 2) == {10: 1.0}


def test_a_row_that_the_teacher_could_not_fill_is_filled_by_what_begins_with_it() -> None:
    student, teacher = LongestMatch([b"\xe2\x82", b"\xac"]), LongestMatch([b"\xac", "€".encode()])
    assert build(student, teacher).num_empty == 1
    matrix = build(student, teacher, reverse_pass=True)
    assert [entries(matrix, row) for row in range(2)] == [{1: 1.0}, {0: 1.0}]
    assert matrix.exact_rows.tolist() == [False, True]


def test_the_heaviest_stay_and_the_teachers_own_pieces_win_ties() -> None:
    teacher = LongestMatch([b"a", b"b", *(b"ab" + bytes([value]) for value in b"uvwxyz")])
    student = LongestMatch([b"ab", *(bytes([value]) for value in b"uvwxyz")])
    matrix = build(student, teacher, top_k=3, reverse_pass=True)
    assert entries(matrix, 0) == pytest.approx({0: 1 / 3, 2: 1 / 3, 3: 1 / 3}, rel=1e-6)


def test_special_and_unused_teacher_ids_are_not_encoded() -> None:
    student = LongestMatch([b"ab", b"", b"eos"])
    teacher = LongestMatch([b"a", b"b", b"", b"", b"b"], {2: "eos"})
    matrix = build(student, teacher, reverse_pass=True)
    assert set(entries(matrix, 0)) == {0, 4}


ALPHABET = "abé"
pieces = st.lists(st.text(ALPHABET, min_size=1, max_size=4).map(str.encode), max_size=10, unique=True)
every_byte = [bytes([value]) for value in sorted(set(ALPHABET.encode()))]


@settings(max_examples=60)
@given(pieces, pieces, st.integers(1, 5))
def test_rows_sum_to_one_exact_rows_stay_and_no_teacher_token_loses_its_first_reach(
    student_tokens: list[bytes], teacher_tokens: list[bytes], top_k: int
) -> None:
    student = LongestMatch(list(dict.fromkeys([*student_tokens, *every_byte])))
    teacher = LongestMatch(list(dict.fromkeys([*teacher_tokens, *every_byte])))
    without, matrix = build(student, teacher, top_k), build(student, teacher, top_k, reverse_pass=True)
    np.testing.assert_allclose(matrix.weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(matrix.exact_rows, without.exact_rows)
    exact = without.exact_rows
    np.testing.assert_array_equal(matrix.indices[exact], without.indices[exact])
    reached = set(without.indices.ravel().tolist())
    for row in np.flatnonzero(~exact).tolist():
        new = set(entries(matrix, row)) - set(entries(without, row))
        for token_id in new - reached:
            assert row in student.encode(teacher.tokens[token_id].decode()).ids
