from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.alignment import align
from nemo_xtoken.errors import AlignmentError
from nemo_xtoken.types import Chunks, Encoding, role_code


class Token(NamedTuple):
    start: int
    end: int
    role: str = ""
    exact: bool = True


class Chunk(NamedTuple):
    student: tuple[int, int]
    teacher: tuple[int, int]
    exact: bool = True


def encoding(tokens: Sequence[Token]) -> Encoding:
    return Encoding(
        ids=np.arange(len(tokens), dtype=np.int32),
        starts=np.array([token.start for token in tokens], np.int64),
        ends=np.array([token.end for token in tokens], np.int64),
        roles=np.array([role_code(token.role) if token.role else 0 for token in tokens], np.uint32),
        exact=np.array([token.exact for token in tokens], np.bool_),
    )


def pieces(*texts: str) -> Encoding:
    """Tokens of a text given as its pieces; `<role>` is a special token."""
    tokens: list[Token] = []
    position = 0
    for text in texts:
        if text.startswith("<"):
            tokens.append(Token(position, position, text[1:-1]))
        else:
            tokens.append(Token(position, position + len(text.encode())))
            position = tokens[-1].end
    return encoding(tokens)


def listed(chunks: Chunks) -> list[Chunk]:
    student = zip(chunks.student_start.tolist(), chunks.student_end.tolist(), strict=True)
    teacher = zip(chunks.teacher_start.tolist(), chunks.teacher_end.tolist(), strict=True)
    return [Chunk(*each) for each in zip(student, teacher, chunks.exact.tolist(), strict=True)]


# The oracle: the definition, token by token, without arrays.


def naive_pairs(student: Sequence[Token], teacher: Sequence[Token]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for i, token in enumerate(student):
        if token.role in ("", "pad"):
            continue
        first = pairs[-1][1] + 1 if pairs else 0
        for j in range(first, len(teacher)):
            if teacher[j].role == token.role and teacher[j].end == token.end:
                pairs.append((i, j))
                break
    return pairs


def naive_segment(tokens: Sequence[Token], first: int, last: int, common: set[int]) -> dict[int, list[int]]:
    """Places of the text tokens of tokens[first:last] by the common boundary at which their chunk ends."""
    chunks: dict[int, list[int]] = {}
    places = [i for i in range(first, last) if not tokens[i].role]
    for i in places:
        after = [j for j in places if j >= i and tokens[j].end > tokens[j].start]
        before = [j for j in places if j < i and tokens[j].end > tokens[j].start]
        decisive = [*after[:1], *before[-1:]]
        boundaries = [position for position in common if decisive and position >= tokens[decisive[0]].end]
        if boundaries:
            chunks.setdefault(min(boundaries), []).append(i)
    return chunks


def naive_align(student: Sequence[Token], teacher: Sequence[Token]) -> list[Chunk]:
    found: list[Chunk] = []
    pairs = [*naive_pairs(student, teacher), (len(student), len(teacher))]
    i = j = 0
    for pair_i, pair_j in pairs:
        sides = ((student, i, pair_i), (teacher, j, pair_j))
        boundaries = [{t.end for t in tokens[a:b] if not t.role and t.end > t.start} for tokens, a, b in sides]
        common = boundaries[0] & boundaries[1]
        left, right = (naive_segment(*side, common) for side in sides)
        for boundary in sorted(common):
            found.append(naive_chunk(student, teacher, left[boundary], right[boundary]))
        if pair_i < len(student):
            exact = student[pair_i].exact and teacher[pair_j].exact
            found.append(Chunk((pair_i, pair_i + 1), (pair_j, pair_j + 1), exact))
        i, j = pair_i + 1, pair_j + 1
    return found


def naive_chunk(student: Sequence[Token], teacher: Sequence[Token], left: list[int], right: list[int]) -> Chunk:
    spans = (min(left), max(left) + 1), (min(right), max(right) + 1)
    inside = [*student[slice(*spans[0])], *teacher[slice(*spans[1])]]
    return Chunk(*spans, all(token.exact and not token.role for token in inside))


@st.composite
def sides(draw: st.DrawFn, size: int) -> list[Token]:
    """Tokens of `size` bytes, some of them empty or inexact, with special tokens between them; seldom these alone."""
    cuts = draw(st.lists(st.integers(0, size), max_size=8))
    has_text = size > 0 and draw(st.integers(0, 9)) > 0
    tokens: list[Token] = []
    bounds = sorted([0, *cuts, size])
    for start, end in pairwise(bounds):
        roles = draw(st.lists(st.sampled_from(["bos", "eos", "pad", "<|x|>"]), max_size=3))
        tokens += [Token(start, start, role) for role in roles]
        if has_text:
            tokens.append(Token(start, end, exact=draw(st.integers(0, 5)) > 0))
    roles = draw(st.lists(st.sampled_from(["bos", "eos", "pad"]), max_size=2))
    return tokens + [Token(size, size, role) for role in roles]


@given(st.integers(0, 9).flatmap(lambda size: st.tuples(sides(size), sides(size))))
@settings(max_examples=300, deadline=None)
def test_chunks_are_those_of_the_definition(pair: tuple[list[Token], list[Token]]) -> None:
    student, teacher = pair
    if max((t.end for t in student), default=0) != max((t.end for t in teacher), default=0):
        return
    assert listed(align(encoding(student), encoding(teacher))) == naive_align(student, teacher)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_text_chunks_tile_both_sides_cover_the_same_bytes_and_cannot_be_divided(
    lengths: list[int], data: st.DataObject
) -> None:
    size = sum(lengths)
    teacher_cuts = sorted({0, *data.draw(st.sets(st.integers(1, size))), size})
    student_cuts = [0, *np.cumsum(lengths).tolist()]
    student, teacher = (encoding([Token(*span) for span in pairwise(cuts)]) for cuts in (student_cuts, teacher_cuts))
    chunks = align(student, teacher)
    for start, end, n in (
        (chunks.student_start, chunks.student_end, len(student)),
        (chunks.teacher_start, chunks.teacher_end, len(teacher)),
    ):
        assert np.concatenate([np.arange(a, b) for a, b in zip(start, end, strict=True)]).tolist() == list(range(n))
    assert (student.starts[chunks.student_start] == teacher.starts[chunks.teacher_start]).all()
    assert (student.ends[chunks.student_end - 1] == teacher.ends[chunks.teacher_end - 1]).all()
    for chunk in listed(chunks):
        inner_student = student.ends[chunk.student[0] : chunk.student[1] - 1]
        inner_teacher = teacher.ends[chunk.teacher[0] : chunk.teacher[1] - 1]
        assert not set(inner_student) & set(inner_teacher)
    assert chunks.exact.all()


@given(st.integers(1, 9).flatmap(lambda size: st.tuples(sides(size), sides(size))))
@settings(deadline=None)
def test_the_sides_can_be_exchanged_where_special_tokens_do_not_cross(pair: tuple[list[Token], list[Token]]) -> None:
    size = max(token.end for side in pair for token in side) if any(pair) else 0
    end = Token(size, size, "eos")
    student, teacher = ([*(token for token in side if token.role in ("", "bos")), end] for side in pair)
    forward = listed(align(encoding(student), encoding(teacher)))
    backward = listed(align(encoding(teacher), encoding(student)))
    assert forward == [Chunk(chunk.teacher, chunk.student, chunk.exact) for chunk in backward]


def test_three_digits_in_one_token_meet_three_tokens() -> None:
    assert listed(align(pieces("201"), pieces("2", "0", "1"))) == [Chunk((0, 1), (0, 3))]


def test_chunks_end_at_every_common_boundary() -> None:
    chunks = align(pieces("It", " has", " 201", " ducks"), pieces("It has", " ", "2", "0", "1", " ducks"))
    assert listed(chunks) == [Chunk((0, 2), (0, 1)), Chunk((2, 3), (1, 5)), Chunk((3, 4), (5, 6))]


def test_special_tokens_pair_by_role_and_not_by_id() -> None:
    chunks = align(pieces("<bos>", "ab", "<eos>"), pieces("<bos>", "a", "b", "<eos>"))
    assert listed(chunks) == [Chunk((0, 1), (0, 1)), Chunk((1, 2), (1, 3)), Chunk((2, 3), (3, 4))]


@pytest.mark.parametrize("unpaired", ["<bos>", "<|im_start|>"])
def test_a_special_token_on_one_side_only_is_a_gap(unpaired: str) -> None:
    assert listed(align(pieces(unpaired, "ab"), pieces("a", "b"))) == [Chunk((1, 2), (0, 2))]
    assert listed(align(pieces("a", "b"), pieces(unpaired, "ab"))) == [Chunk((0, 2), (1, 2))]


def test_padding_is_never_paired() -> None:
    chunks = align(pieces("ab", "<eos>", "<pad>", "<pad>"), pieces("ab", "<eos>", "<pad>"))
    assert listed(chunks) == [Chunk((0, 1), (0, 1)), Chunk((1, 2), (1, 2))]


def test_a_role_at_another_byte_is_no_partner() -> None:
    chunks = align(pieces("a", "<|x|>", "b"), pieces("a", "b", "<|x|>"))
    assert listed(chunks) == [Chunk((0, 1), (0, 1)), Chunk((2, 3), (1, 2))]


def test_special_tokens_at_one_byte_keep_their_order() -> None:
    chunks = align(pieces("<eos>", "<bos>", "a"), pieces("<bos>", "<eos>", "a"))
    assert listed(chunks) == [Chunk((0, 1), (1, 2)), Chunk((2, 3), (2, 3))]


def test_a_chunk_around_an_unpaired_special_token_is_not_exact() -> None:
    chunks = align(pieces("a", "<|x|>", "b", "c"), pieces("ab", "c"))
    assert listed(chunks) == [Chunk((0, 3), (0, 1), exact=False), Chunk((3, 4), (1, 2))]


def test_an_inexact_token_spoils_its_own_chunk_only() -> None:
    student = encoding([Token(0, 0, exact=False), Token(0, 3, exact=False), Token(3, 4)])
    assert listed(align(student, pieces("abc", "d"))) == [Chunk((0, 2), (0, 1), exact=False), Chunk((2, 3), (1, 2))]


def test_tokens_without_bytes_join_the_token_that_follows_and_at_the_end_the_last() -> None:
    student = encoding([Token(0, 0), Token(0, 1), Token(1, 1), Token(1, 2), Token(2, 2)])
    assert listed(align(student, pieces("a", "b"))) == [Chunk((0, 2), (0, 1)), Chunk((2, 5), (1, 2))]


def test_a_split_emoji_is_one_chunk() -> None:
    student = encoding([Token(0, 1), Token(1, 2), Token(2, 4), Token(4, 5)])
    teacher = encoding([Token(0, 3), Token(3, 4), Token(4, 5)])
    assert listed(align(student, teacher)) == [Chunk((0, 3), (0, 2)), Chunk((3, 4), (2, 3))]


def test_empty_texts_have_no_chunks_but_their_special_tokens() -> None:
    assert listed(align(pieces(), pieces())) == []
    assert listed(align(pieces("<bos>"), pieces("<bos>", "<eos>"))) == [Chunk((0, 1), (0, 1))]


def test_a_side_without_tokens_has_no_chunks() -> None:
    """As wordpiece of nothing but spaces."""
    bare = Encoding(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    for tokens in (pieces(" ", " "), pieces("<bos>", " ", "<eos>"), pieces("<bos>"), bare):
        for nothing in (pieces(), bare):
            assert listed(align(tokens, nothing)) == listed(align(nothing, tokens)) == []


def test_texts_of_different_length_are_refused_in_one_line() -> None:
    with pytest.raises(AlignmentError, match="3 bytes on the student's side and 2") as caught:
        align(pieces("abc"), pieces("ab"))
    assert "\n" not in str(caught.value)


def test_arrays_have_the_documented_types() -> None:
    for chunks in (align(pieces("ab"), pieces("a", "b")), align(pieces(), pieces())):
        bounds = (chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end)
        assert {bound.dtype for bound in bounds} == {np.dtype(np.int64)}
        assert chunks.exact.dtype == np.bool_


def test_a_real_text_is_aligned_as_by_the_definition() -> None:
    text = "naïve 2024 — 👩‍👩‍👧 \r\n\t中文 x"
    byte_tokens = tokenizers.load("bytes").encode(text)
    words = pieces("naïve", " 2024", " —", " 👩‍👩‍👧", " \r\n", "\t中", "文", " x")
    chunks = align(words, byte_tokens)
    assert len(chunks) == len(words)
    assert (chunks.teacher_end - chunks.teacher_start == words.ends - words.starts).all()
