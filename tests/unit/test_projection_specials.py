"""Special tokens find their partners by role or by their place in a chat template; every empty row has its reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.projection import EmptyReason, ProjectionMatrix, audit, build, empty_rows
from nemo_xtoken.projection.special_pairs import CHAT_PLACES, special_partners
from tests.longest_match import BYTES, LongestMatch, entries
from tests.small_tokenizers import rank_file, wordpiece

LLAMA = {5: "bos", 6: "eos", 7: "<|start_header_id|>", 8: "<|end_header_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}
QWEN = {3: "eos", 1: "<|im_start|>", 2: "<|im_end|>"}
PHI4 = {0: "bos", 1: "<|im_start|>", 2: "<|im_end|>", 3: "<|im_sep|>"}


def test_markers_pair_by_their_place_in_a_chat_template() -> None:
    assert special_partners(LLAMA, QWEN) == {6: 3, 7: 1, 9: 2}
    assert special_partners(LLAMA, PHI4) == {5: 0, 7: 1, 8: 3, 9: 2}
    assert special_partners({0: "<start_of_turn>", 1: "<end_of_turn>"}, {8: "<|end|>", 9: "<|start|>"}) == {0: 9, 1: 8}


def test_the_same_marker_comes_before_one_of_the_same_place() -> None:
    teacher = {0: "<|eot_id|>", 1: "<|im_end|>"}
    assert special_partners({4: "<|im_end|>"}, teacher) == {4: 1}
    assert special_partners({4: "<|im_end|>", 5: "<|eot|>"}, teacher) == {4: 1, 5: 0}
    assert special_partners({4: "<|im_end|>", 5: "<|eot|>"}, {1: "<|im_end|>"}) == {4: 1}


def test_of_several_markers_of_one_place_the_lowest_ids_pair() -> None:
    assert special_partners({3: "<|eot|>", 2: "<|end|>"}, {9: "<|im_end|>", 8: "<|eot_id|>"}) == {2: 8}


def test_a_marker_without_a_place_stays_alone() -> None:
    assert special_partners({0: "<|image|>"}, {0: "<|video|>"}) == {}
    assert "<|image|>" not in CHAT_PLACES


@given(
    st.dictionaries(st.integers(0, 30), st.sampled_from([*CHAT_PLACES, "bos", "eos", "<x>"]), max_size=12),
    st.dictionaries(st.integers(0, 30), st.sampled_from([*CHAT_PLACES, "bos", "eos", "<y>"]), max_size=12),
)
def test_partners_have_one_role_or_one_place_and_places_pair_one_to_one(
    student: dict[int, str], teacher: dict[int, str]
) -> None:
    partners = special_partners(student, teacher)
    by_place = {s: t for s, t in partners.items() if student[s] != teacher[t]}
    assert all(CHAT_PLACES[student[s]] == CHAT_PLACES[teacher[t]] for s, t in by_place.items())
    by_role = set(partners.values()) - set(by_place.values())
    assert len(set(by_place.values())) == len(by_place)
    assert by_role.isdisjoint(by_place.values())
    unpaired = {role for token_id, role in student.items() if token_id not in partners}
    assert unpaired.isdisjoint(teacher.values())


def test_a_pair_by_place_is_an_exact_row() -> None:
    student = LongestMatch([b"a", b""], {1: "<|eot_id|>"})
    matrix = build(student, LongestMatch([b"", b"a"], {0: "<|im_end|>"}))
    assert entries(matrix, 1) == {0: 1.0}
    assert matrix.exact_rows.tolist() == [True, True]


def test_every_empty_row_has_its_reason() -> None:
    student = LongestMatch([b"a", b"", b"", b"\xff", b"b"], {1: "bos"})
    matrix = build(student, LongestMatch([b"a"]))
    assert empty_rows(matrix, student) == {
        EmptyReason.SPECIAL: [1],
        EmptyReason.UNUSED: [2],
        EmptyReason.UNKNOWN: [3, 4],
    }
    result = audit(matrix, student, LongestMatch([b"a"]))
    assert {why: rows.total for why, rows in result.empty.items()} == {
        EmptyReason.SPECIAL: 1,
        EmptyReason.UNUSED: 1,
        EmptyReason.UNKNOWN: 2,
    }
    assert result.empty[EmptyReason.SPECIAL].examples == ("bos",)
    assert result.empty[EmptyReason.UNKNOWN].examples == (r"\xff", "b")
    assert result.as_dict()["empty_reasons"]["unused_id"] == {"total": 1, "examples": ("#2",)}


def test_a_full_matrix_has_no_reasons() -> None:
    matrix = ProjectionMatrix(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32))
    assert empty_rows(matrix, LongestMatch([b"a"])) == {}


def test_the_token_for_the_unknown_is_no_piece(tmp_path: Path) -> None:
    merges = [b"\xe2\x98", "☃".encode(), b"th", b"the"]
    student = tokenizers.load(f"{rank_file(tmp_path, merges=merges)}?pattern=gpt2")
    teacher = tokenizers.load(str(wordpiece(tmp_path)))
    matrix = build(student, teacher)
    snowman, the = student.encode("☃").ids[0], student.encode("the").ids[0]
    assert [teacher.special_roles.get(i) for i in teacher.encode("☃").ids.tolist()] == ["unk"]
    assert entries(matrix, snowman) == {}
    assert entries(matrix, the) == {int(teacher.encode("the").ids[0]): 1.0}
    assert snowman in empty_rows(matrix, student)[EmptyReason.UNKNOWN]
    written = set(matrix.indices.ravel().tolist()) - {-1}
    assert written.isdisjoint(i for i, role in teacher.special_roles.items() if role == "unk")


def test_unreached_teacher_tokens_are_counted() -> None:
    student, teacher = LongestMatch([b"a", b"b"]), LongestMatch([b"a", b"b", b"ab", b"", b"ba"])
    assert audit(build(student, teacher), student, teacher).num_unreached == 2


def test_user_classes_match_the_whole_text_of_a_token() -> None:
    student = LongestMatch([*BYTES, b"1999", b"x1999", "é".encode(), b"", b""], {259: "1999"})
    teacher = LongestMatch(BYTES)
    patterns = {"year": re.compile(r"(19|20)\d\d"), "letter": re.compile(r"\w"), "broken": re.compile("\ufffd")}
    result = audit(build(student, teacher), student, teacher, patterns)
    assert (result.user_classes["year"].total, result.user_classes["year"].common) == (1, 0)
    assert result.user_classes["year"].uncommon_examples == ("1999",)
    assert (result.user_classes["letter"].total, result.user_classes["letter"].common) == (64, 63)
    assert result.user_classes["broken"].total == 128
    assert result.as_dict()["user_classes"]["year"]["total"] == 1
