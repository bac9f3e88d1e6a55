"""W, the common set and the audit, on small tokenizers whose every encoding can be checked by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers as published
from nemo_xtoken.errors import ConfigError, ProjectionError
from nemo_xtoken.losses.projected_kl import check_same_tokenizer
from nemo_xtoken.projection import CRITICAL_CLASSES, ProjectionMatrix, TokenClass, audit, build, common_set
from nemo_xtoken.projection.entries import NARROW
from tests.longest_match import BYTES, DIGITS, LongestMatch, entries
from tests.small_tokenizers import LIKE_LLAMA, sentencepiece_file


def test_201_becomes_2_0_1_with_the_weights_of_the_paper() -> None:
    matrix = build(LongestMatch([b"201"]), LongestMatch(DIGITS))
    assert matrix.indices.tolist() == [[2, 0, 1, -1]]
    np.testing.assert_allclose(matrix.weights[0], [0.9 / 0.999, 0.09 / 0.999, 0.009 / 0.999, 0], rtol=1e-6)
    np.testing.assert_allclose(matrix.weights[0], [0.9009, 0.0901, 0.0090, 0], atol=5e-5)
    assert matrix.num_exact == 0


def test_a_piece_that_comes_back_adds_to_its_entry() -> None:
    matrix = build(LongestMatch([b"111", b"121"]), LongestMatch(DIGITS))
    assert entries(matrix, 0) == {1: 1.0}
    assert entries(matrix, 1) == pytest.approx({1: 0.909 / 0.999, 2: 0.09 / 0.999}, rel=1e-6)


def test_a_single_entry_of_repeated_pieces_is_not_an_exact_pair() -> None:
    matrix = build(LongestMatch([b"11", b"1"]), LongestMatch(DIGITS))
    assert matrix.exact_rows.tolist() == [False, True]
    assert [side.tolist() for side in common_set(matrix)] == [[1], [1]]
    alone = build(LongestMatch([b"11"]), LongestMatch(DIGITS))
    assert [side.tolist() for side in common_set(alone)] == [[], []]
    assert [side.tolist() for side in common_set(alone, 0.6)] == [[0], [1]]


def test_all_pieces_of_every_token_are_known_and_the_first_ones_make_a_w_of_their_own() -> None:
    student = LongestMatch([b"2012012", b"111", b"2", b"x", b""], {4: "bos"})
    matrix = build(student, LongestMatch([*DIGITS, b""], {10: "bos"}))
    assert matrix.pieces is not None
    assert [matrix.pieces.of_token(token) for token in range(5)] == [[2, 0, 1, 2, 0, 1, 2], [1, 1, 1], [2], [], [10]]
    first = matrix.first_pieces()
    assert [entries(first, token) for token in range(5)] == [{2: 1}, {1: 1}, {2: 1}, {}, {10: 1}]
    assert first.exact_rows.tolist() == [False, False, True, False, True]


def test_a_teacher_token_that_nothing_begins_with_counts_as_the_first_piece_that_both_have_of_it() -> None:
    # "20" is the student's own two pieces; "9" and all that begins with it are nothing to it; "x1" it writes with "x",
    # which is nothing to the teacher; "ab" is what the student's "abc" begins with, and stays itself.
    student = LongestMatch([b"2", b"0", b"1", b"x", b"abc", b"a", b"b", b"12"])
    teacher = LongestMatch([b"2", b"0", b"1", b"20", b"201", b"9", b"x1", b"a", b"b", b"c", b"ab", b"121"])
    matrix = build(student, teacher)
    table = matrix.teacher_pieces
    assert table is not None
    assert [table.of_token(token) for token in (0, 3, 4, 5, 6, 10, 11)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [],
        [3, 2],
        [5, 6],
        [7, 2],
    ]
    folded, counts_as = matrix.folded_tokens()
    assert dict(zip(folded.tolist(), counts_as.tolist(), strict=True)) == {3: 0, 4: 0, 11: 2}


def test_only_the_heaviest_pieces_stay() -> None:
    student, teacher = LongestMatch([b"12345", b"12334"]), LongestMatch(DIGITS)
    matrix = build(student, teacher, top_k=3, gamma=0.5)
    assert entries(matrix, 0) == pytest.approx({1: 4 / 7, 2: 2 / 7, 3: 1 / 7})
    assert entries(matrix, 1) == pytest.approx({1: 8 / 15, 2: 4 / 15, 3: 3 / 15})


def test_more_columns_than_any_row_fills_take_no_memory() -> None:
    matrix = build(LongestMatch([b"0123456789" * 4, b"201"]), LongestMatch(DIGITS), 10**12, gamma=1.0)
    assert matrix.indices.shape == (2, NARROW)
    many = LongestMatch([bytes([value]) for value in range(100)])
    matrix = build(LongestMatch([bytes(range(100)), b"1"]), many, 10**12, gamma=1.0)
    assert matrix.indices.shape == (2, 100)
    assert len(entries(matrix, 0)) == 100


def test_gamma_zero_keeps_the_first_piece_alone() -> None:
    assert entries(build(LongestMatch([b"201"]), LongestMatch(DIGITS), gamma=0.0), 0) == {2: 1.0}


def test_long_tokens_do_not_leave_entries_of_weight_zero() -> None:
    matrix = build(LongestMatch([b"1" * 400 + b"2"]), LongestMatch(DIGITS))
    assert entries(matrix, 0) == {1: 1.0}


def test_equal_bytes_are_exact_even_if_the_encoder_would_cut_them() -> None:
    teacher = LongestMatch([b"a", b"b", b"ab"])
    teacher.ids.pop(b"ab")
    matrix = build(LongestMatch([b"ab"]), teacher)
    assert entries(matrix, 0) == {2: 1.0}
    assert matrix.num_exact == 1


def test_special_tokens_pair_by_role_and_stay_empty_without_a_partner() -> None:
    student = LongestMatch([b"a", b"", b"", b""], {1: "eos", 2: "<|im_start|>"})
    teacher = LongestMatch([b"a", b";", b"", b""], {3: "eos", 2: "bos"})
    matrix = build(student, teacher)
    assert [entries(matrix, row) for row in range(4)] == [{0: 1.0}, {3: 1.0}, {}, {}]
    assert (matrix.num_exact, matrix.num_empty) == (2, 2)


def test_a_role_that_the_teacher_has_twice_goes_to_the_lowest_id() -> None:
    student, teacher = LongestMatch([b""], {0: "eos"}), LongestMatch([b"a", b"", b""], {2: "eos", 1: "eos"})
    assert entries(build(student, teacher), 0) == {1: 1.0}


def test_text_is_cut_as_the_teacher_would_and_not_by_the_longest_match() -> None:
    teacher = LongestMatch([b"a", b"b", b"c", b"ab"])
    teacher.ids.pop(b"ab")
    assert list(entries(build(LongestMatch([b"abc"]), teacher), 0)) == [0, 1, 2]


def test_the_teacher_is_asked_once_for_all_tokens() -> None:
    teacher = LongestMatch(DIGITS)
    build(LongestMatch([b"12", b"34", b"56"]), teacher)
    assert teacher.num_batches == 1


def test_bytes_that_are_no_text_alone_are_matched_as_bytes() -> None:
    euro = "€".encode()
    student = LongestMatch([euro[:2], b" " + euro[:1], euro])
    matrix = build(student, LongestMatch([*BYTES, euro]))
    assert entries(matrix, 0) == pytest.approx({euro[0]: 1 / 1.1, euro[1]: 0.1 / 1.1}, rel=1e-6)
    assert entries(matrix, 1) == pytest.approx({32: 1 / 1.1, euro[0]: 0.1 / 1.1}, rel=1e-6)
    assert entries(matrix, 2) == {256: 1.0}
    longer = build(LongestMatch([euro[:2] + euro[:1]]), LongestMatch([*BYTES, euro[:2]]))
    assert list(entries(longer, 0)) == [256, euro[0]]
    exact = build(student, LongestMatch([*BYTES, euro[:2]]))
    assert entries(exact, 0) == {256: 1.0}


def test_bytes_that_the_teacher_lacks_leave_the_row_empty() -> None:
    matrix = build(LongestMatch([b"\xe2\x82", b"a\xe2"]), LongestMatch([b"a", b"\xe2"]))
    assert matrix.empty_rows.tolist() == [True, False]
    assert build(LongestMatch([b"\xe2\x82"]), LongestMatch([b"a"])).num_empty == 1


def test_of_two_ids_with_the_same_bytes_the_one_in_use_is_taken() -> None:
    fallback_first = LongestMatch([b"a", b"b", b"a"])
    assert fallback_first.encode("a").ids.tolist() == [2]
    matrix = build(LongestMatch([b"a"]), fallback_first)
    assert entries(matrix, 0) == {2: 1.0}
    rewritten = LongestMatch([b"a", b"b", b"a"])
    rewritten.ids[b"a"] = 1
    assert entries(build(LongestMatch([b"a"]), rewritten), 0) == {0: 1.0}
    unused = LongestMatch([b"x", b"\xff", b"\xff"])
    assert entries(build(LongestMatch([b"\xff"]), unused), 0) == {1: 1.0}


def test_a_student_id_that_is_never_written_is_outside_the_common_set() -> None:
    matrix = build(LongestMatch([b"a", b"b", b"a"]), LongestMatch([b"a", b"b"]))
    assert [entries(matrix, row) for row in range(3)] == [{0: 1.0}, {1: 1.0}, {0: 1.0}]
    assert [side.tolist() for side in common_set(matrix, 0.6)] == [[1, 2], [1, 0]]


def test_a_space_put_before_the_text_does_not_become_a_piece() -> None:
    teacher = LongestMatch([b" ", b"\n", b" t", b"t", b"o", b"\n\n"], space=True)
    matrix = build(LongestMatch([b"to", b"\nto", b" to"]), teacher)
    assert list(entries(matrix, 0)) == [3, 4]
    assert list(entries(matrix, 1)) == [1, 3, 4]
    assert list(entries(matrix, 2)) == [2, 4]


@pytest.mark.parametrize(
    "options", [{"top_k": 0}, {"beta": 0.0}, {"beta": float("inf")}, {"gamma": -0.1}, {"gamma": 1.5}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected top_k >= 1"):
        build(LongestMatch([b"a"]), LongestMatch([b"a"]), **options)


ALPHABET = "ab1é€"
token_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5).map(str.encode), max_size=12, unique=True)
fragments = st.lists(st.sampled_from([b"\xe2", b"\x82", b"\xe2\x82", b"a\xc3"]), max_size=4, unique=True)
every_byte = [bytes([value]) for value in sorted(set(ALPHABET.encode()))]


@st.composite
def tokenizers(draw: st.DrawFn) -> LongestMatch:
    tokens = list(dict.fromkeys([*every_byte, *draw(token_lists), *draw(fragments), b""]))
    tokens = draw(st.permutations(tokens))
    return LongestMatch(tokens, {tokens.index(b""): draw(st.sampled_from(["eos", "bos"]))})


@settings(max_examples=60, deadline=None)
@given(tokenizers(), tokenizers(), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_the_projection_of_a_distribution_is_a_distribution(
    student: LongestMatch, teacher: LongestMatch, top_k: int, gamma: float, seed: int
) -> None:
    matrix = build(student, teacher, top_k=top_k, gamma=gamma)
    p = np.random.default_rng(seed).dirichlet(np.ones(student.vocab_size))
    p[matrix.empty_rows] = 0
    q = matrix.to_dense().T.astype(np.float64) @ (p / p.sum())
    assert (q >= 0).all()
    assert q.sum() == pytest.approx(1, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(tokenizers(), tokenizers())
def test_every_row_holds_pieces_of_the_teachers_own_encoding_and_nothing_else(
    student: LongestMatch, teacher: LongestMatch
) -> None:
    matrix = build(student, teacher)
    by_role = {role: token_id for token_id, role in teacher.special_roles.items()}
    for row, token in enumerate(student.tokens):
        found = entries(matrix, row)
        if row in student.special_roles:
            partner = by_role.get(student.special_roles[row])
            assert found == ({} if partner is None else {partner: 1.0})
        elif token in teacher.ids:
            assert found == {teacher.ids[token]: 1.0}
            assert matrix.exact_rows[row]
        else:
            assert found
            assert not matrix.exact_rows[row]
            assert sum(found.values()) == pytest.approx(1, abs=1e-6)
            assert set(found) <= set(pieces_of(teacher, token))


def pieces_of(teacher: LongestMatch, token: bytes) -> list[int]:
    """The same cut, once more, from the right end of each piece down, on bytes."""
    if not token:
        return []
    head = max((known for known in teacher.ids if token.startswith(known)), key=len)
    return [teacher.ids[head], *pieces_of(teacher, token[len(head) :])]


@settings(max_examples=60, deadline=None)
@given(tokenizers(), tokenizers(), st.sampled_from([0.3, 0.6, 0.95, 1.0]))
def test_the_common_set_is_one_to_one_and_grows_as_the_threshold_falls(
    student: LongestMatch, teacher: LongestMatch, threshold: float
) -> None:
    matrix = build(student, teacher)
    student_ids, teacher_ids = common_set(matrix, threshold)
    assert student_ids.dtype == teacher_ids.dtype == np.int64
    assert len(set(student_ids.tolist())) == len(set(teacher_ids.tolist())) == len(student_ids)
    exact = set(zip(*(side.tolist() for side in common_set(matrix)), strict=True))
    assert exact <= set(zip(student_ids.tolist(), teacher_ids.tolist(), strict=True))


def test_the_larger_weight_then_the_lower_student_id_wins_a_teacher_token() -> None:
    matrix = ProjectionMatrix(
        np.array([[0, 1], [0, 1], [0, 1], [2, 1]], np.int32),
        np.array([[0.6, 0.4], [0.7, 0.3], [0.7, 0.3], [0.55, 0.45]], np.float32),
    )
    assert [side.tolist() for side in common_set(matrix, 0.6)] == [[1], [0]]
    assert [side.tolist() for side in common_set(matrix, 0.5)] == [[1, 3], [0, 2]]
    assert [side.tolist() for side in common_set(matrix)] == [[], []]


@pytest.mark.parametrize("threshold", [0.0, 1.01, 60.0])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ProjectionError, match="threshold"):
        common_set(build(LongestMatch([b"a"]), LongestMatch([b"a"])), threshold)


NUMERALS = [f"{value:02}".encode() for value in range(100)] + [f"{value:03}".encode() for value in range(1000)]


def test_missing_numerals_call_for_projection() -> None:
    student, teacher = LongestMatch([*BYTES, *NUMERALS, b" the"]), LongestMatch([*BYTES, b" the"])
    result = audit(build(student, teacher), student, teacher)
    assert result.recommended == "p_kl"
    for name, total in ((TokenClass.TWO_DIGITS, 100), (TokenClass.THREE_DIGITS, 1000)):
        assert (result.classes[name].total, result.classes[name].common) == (total, 0)
    assert result.classes[TokenClass.TWO_DIGITS].uncommon_examples[:3] == ("00", "01", "02")
    assert result.classes[TokenClass.PUNCTUATION].common == 32
    assert "100 of 100 two-digit numerals" in result.reason
    assert "1000 of 1000 three-digit numerals" in result.reason


def test_one_missing_punctuation_mark_calls_for_projection() -> None:
    student, teacher = LongestMatch([b"a", b"!", b" ?"]), LongestMatch([b"a", b"!", b" ", b"?"])
    result = audit(build(student, teacher), student, teacher)
    assert result.recommended == "p_kl"
    assert "1 of 2 punctuation marks" in result.reason


def test_covered_numerals_call_for_the_hybrid_whatever_the_words() -> None:
    student, teacher = LongestMatch([*BYTES, *NUMERALS, b" the"]), LongestMatch([*BYTES, *reversed(NUMERALS)])
    result = audit(build(student, teacher), student, teacher)
    assert result.recommended == "h_kl"
    assert "all 1132 critical student tokens" in result.reason
    assert result.classes[TokenClass.SPACED_WORD].uncommon_examples == (" the",)


def test_classes_add_up_to_the_vocabulary_and_rows_too() -> None:
    student = LongestMatch([*BYTES, b"12", b"", b"", b"a"], {257: "eos"})
    teacher = LongestMatch(BYTES)
    result = audit(build(student, teacher), student, teacher)
    assert sum(coverage.total for coverage in result.classes.values()) == student.vocab_size
    assert (result.num_exact, result.num_projected, result.num_empty) == (256, 2, 2)
    assert result.classes[TokenClass.SPECIAL].uncommon_examples == ("eos",)
    assert result.classes[TokenClass.UNUSED].total == 2
    assert set(CRITICAL_CLASSES) & set(result.classes) == {TokenClass.TWO_DIGITS, TokenClass.PUNCTUATION}


def test_the_audit_can_be_written_as_json() -> None:
    student, teacher = LongestMatch([b"12", b"1", b"2"], spec="s"), LongestMatch(DIGITS, spec="t")
    result = json.loads(json.dumps(audit(build(student, teacher), student, teacher).as_dict()))
    assert result["recommended"] == "p_kl"
    assert (result["student"], result["teacher"]) == ("s", "t")
    assert result["classes"]["two_digit_numeral"] == {
        "total": 1,
        "common": 0,
        "critical": True,
        "uncommon_examples": ["12"],
    }


def test_the_audit_refuses_another_pair() -> None:
    student, teacher = LongestMatch([b"12"]), LongestMatch(DIGITS)
    matrix = build(student, teacher)
    with pytest.raises(ProjectionError, match="swapped"):
        audit(matrix, teacher, student)
    with pytest.raises(ProjectionError, match="teacher"):
        audit(matrix, student, LongestMatch(DIGITS[:5]))


def test_of_one_tokenizer_on_both_sides_w_is_the_identity_also_where_tokens_have_the_same_bytes(tmp_path: Path) -> None:
    tokenizer = published.load(str(sentencepiece_file(tmp_path, **LIKE_LLAMA)))
    contents = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert contents.count(b"a") == 2, "a piece of its own, and a byte of the fallback"
    matrix = build(tokenizer, tokenizer)
    ids = np.arange(tokenizer.vocab_size)
    filled = ~matrix.empty_rows
    assert filled[[bool(content) for content in contents]].all()
    assert (matrix.indices[filled, 0] == ids[filled]).all()
    assert (matrix.weights[filled] == [1, 0, 0, 0]).all()
    check_same_tokenizer(matrix)
