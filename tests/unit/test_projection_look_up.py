"""Single tokens in W, from either side."""

from __future__ import annotations

import pytest

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection import build
from nemo_xtoken.projection.look_up import find_tokens, student_row, teacher_column
from tests.longest_match import BYTES, DIGITS, LongestMatch

STUDENT = LongestMatch([b"201", b"20", b"2", b"\xe2\x82", b"", b"", b"#7", " é".encode()], {4: "bos"}, spec="student")
TEACHER = LongestMatch([*DIGITS, b"20", b"x"], spec="teacher")


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("201", [0]),
        ("#1", [1]),
        ("#001", [1]),
        ("0x32 0x30", [1]),
        ("0xE2 0x82", [3]),
        ("0xe282", [3]),
        ("bos", [4]),
        ("#5", [5]),
        ("0x23 0x37", [6]),
        (" é", [7]),
        ("2012", [0, 2]),
    ],
)
def test_a_token_is_named_by_text_id_or_bytes(name: str, ids: list[int]) -> None:
    assert find_tokens(STUDENT, name) == ids


def test_a_special_token_is_named_by_role_or_by_its_name_in_the_file() -> None:
    names = {0: "<|begin_of_text|>", 1: "<|x|>"}
    tokenizer = LongestMatch([b"", b"", *BYTES], {0: "bos", 1: "<|x|>"}, special_names=names)
    assert find_tokens(tokenizer, "<|begin_of_text|>") == find_tokens(tokenizer, "bos") == [0]
    assert find_tokens(tokenizer, "<|x|>") == [1]
    assert len(find_tokens(tokenizer, "<|y|>")) == 5
    with pytest.raises(ProjectionError, match="has no token '#9999"):
        find_tokens(tokenizer, "#" + "9" * 5000)


@pytest.mark.parametrize("name", ["#8", "0xE2", "zzz", "", "\udcff"])
def test_a_token_that_is_not_there_is_one_clear_line(name: str) -> None:
    with pytest.raises(ProjectionError, match=r"^student has no token .*; expected text, bytes .* from #0 to #7$"):
        find_tokens(STUDENT, name)


def test_a_student_token_shows_what_it_stands_for() -> None:
    matrix = build(STUDENT, TEACHER)
    row = student_row(matrix, STUDENT, TEACHER, 0)
    assert (row.token.content, row.kind, row.reason) == (b"201", "projected", "")
    assert [(link.token.token_id, link.token.content) for link in row.links] == [(10, b"20"), (1, b"1")]
    assert [link.weight for link in row.links] == pytest.approx([0.9 / 0.99, 0.09 / 0.99])
    assert student_row(matrix, STUDENT, TEACHER, 1).kind == "exact"


@pytest.mark.parametrize(("token_id", "words"), [(4, "special tokens"), (5, "no bytes"), (3, "no teacher tokens")])
def test_an_empty_row_says_why(token_id: int, words: str) -> None:
    row = student_row(build(STUDENT, TEACHER), STUDENT, TEACHER, token_id)
    assert (row.kind, row.links) == ("empty", ())
    assert words in row.reason


def test_a_teacher_token_shows_who_reaches_it_heaviest_first() -> None:
    matrix = build(STUDENT, TEACHER)
    column = teacher_column(matrix, STUDENT, TEACHER, 10)
    assert [(link.token.content, link.weight) for link in column.links] == [
        (b"20", 1.0),
        (b"201", pytest.approx(0.9 / 0.99)),
    ]
    assert column.kind == "reached"
    alone = teacher_column(matrix, STUDENT, TEACHER, 11)
    assert (alone.kind, alone.links, alone.reason) == ("unreached", (), "no student token reaches it")


def test_both_directions_show_the_same_entries() -> None:
    matrix = build(STUDENT, TEACHER)
    forward = {
        (row, link.token.token_id, link.weight)
        for row in range(STUDENT.vocab_size)
        for link in student_row(matrix, STUDENT, TEACHER, row).links
    }
    backward = {
        (link.token.token_id, column, link.weight)
        for column in range(TEACHER.vocab_size)
        for link in teacher_column(matrix, STUDENT, TEACHER, column).links
    }
    assert forward == backward
