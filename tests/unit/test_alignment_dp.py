"""The paper's aligner against its table, filled cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.alignment import align, align_dp
from nemo_xtoken.alignment import dp as aligner
from nemo_xtoken.alignment.dp import score
from nemo_xtoken.alignment.score_tables import LONGEST_WINDOW
from nemo_xtoken.types import Chunks, Encoding, role_code
from tests.fake_tokenizers import random_texts

ROLES = {0: "pad", 1: "bos", 2: "eos", 3: "<|x|>"}
Chunk = tuple[int, int, int, int]


class Strings:
    """A tokenizer whose ids stand for the strings that it was given; the first ids are special tokens."""

    special_roles = ROLES

    def __init__(self, *texts: Sequence[str]) -> None:
        self.strings = [*ROLES.values(), "", *sorted({piece for text in texts for piece in text if piece})]

    @property
    def vocab_size(self) -> int:
        return len(self.strings)

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in ROLES else self.strings[token_id].encode()

    def encoding(self, pieces: Sequence[str]) -> Encoding:
        ids = np.array([self.strings.index(piece) for piece in pieces], np.int32)
        roles = np.array([role_code(piece) if piece in ROLES.values() else 0 for piece in pieces], np.uint32)
        lengths = [0 if role else len(piece) for role, piece in zip(roles, pieces, strict=True)]
        ends = np.cumsum(lengths, dtype=np.int64)
        return Encoding(ids, ends - np.array(lengths, np.int64), ends, roles)


def dp(student: Sequence[str], teacher: Sequence[str]) -> Chunks:
    sides = Strings(student), Strings(teacher)
    return align_dp(sides[0].encoding(student), sides[1].encoding(teacher), *sides)  # type: ignore[arg-type]


def listed(chunks: Chunks) -> list[Chunk]:
    columns = (chunks.student_start, chunks.student_end, chunks.teacher_start, chunks.teacher_end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class Best(NamedTuple):
    """The best score of a table, and the chunks of each path that has it."""

    score: float
    chunks: frozenset[tuple[Chunk, ...]]


def full_table(student: Sequence[str], teacher: Sequence[str]) -> Best:
    """The recursion of the method, cell by cell, with every best path."""

    def equal(left: Sequence[str], right: Sequence[str]) -> bool:
        special = any(piece in ROLES.values() for piece in (*left, *right))
        if special and (len(left), len(right)) != (1, 1):
            return False
        return "pad" not in left and "".join(left) == "".join(right)

    @cache
    def best(i: int, j: int) -> Best:
        if i == 0 or j == 0:
            return Best(-1.5 * (i + j), frozenset([()]))
        pair: tuple[Chunk, ...] = ((i - 1, i, j - 1, j),) if equal(student[i - 1 : i], teacher[j - 1 : j]) else ()
        steps: list[tuple[Best, float, tuple[Chunk, ...]]] = [(best(i - 1, j - 1), 3 if pair else -3, pair)]
        steps += [(best(i - 1, j), -1.5, ()), (best(i, j - 1), -1.5, ())]
        for k in range(2, 5):
            if j >= k and equal(student[i - 1 : i], teacher[j - k : j]):
                steps.append((best(i - 1, j - k), 1.5 * k, ((i - 1, i, j - k, j),)))
            if i >= k and equal(student[i - k : i], teacher[j - 1 : j]):
                steps.append((best(i - k, j - 1), 1.5 * k, ((i - k, i, j - 1, j),)))
        highest = max(before.score + gain for before, gain, _ in steps)
        paths = (
            path + chunk for before, gain, chunk in steps if before.score + gain == highest for path in before.chunks
        )
        return Best(highest, frozenset(paths))

    return best(len(student), len(teacher))


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """One text, cut twice, with special tokens here and there; few letters, so that strings come again."""
    text = draw(st.text(alphabet="ab", max_size=9) | st.text(alphabet="abcdefgh", max_size=9))
    sides: list[list[str]] = []
    for _ in range(2):
        cuts = sorted({0, *draw(st.sets(st.integers(0, len(text)), max_size=8)), len(text)})
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        for role in draw(st.lists(st.sampled_from(list(ROLES.values())), max_size=2)):
            pieces.insert(draw(st.integers(0, len(pieces))), role)
        sides.append(pieces)
    return sides[0], sides[1]


@given(cut_texts())
@settings(max_examples=300)
def test_score_and_chunks_are_those_of_the_whole_table(pair: tuple[list[str], list[str]]) -> None:
    student, teacher = pair
    chunks, best = dp(student, teacher), full_table(student, teacher)
    assert score(chunks, len(student), len(teacher)) == best.score
    assert tuple(listed(chunks)) in best.chunks


def test_201_scores_4_and_a_half() -> None:
    chunks = dp(["201"], ["2", "0", "1"])
    assert listed(chunks) == [(0, 1, 0, 3)]
    assert score(chunks, 1, 3) == 4.5
    nothing = np.zeros(0, np.int64)
    assert score(Chunks(nothing, nothing, nothing, nothing, np.zeros(0, np.bool_)), 1, 3) == -6


def test_runs_of_more_than_four_tokens_are_gaps() -> None:
    assert listed(dp(["abcd"], list("abcd"))) == [(0, 1, 0, 4)]
    assert listed(dp(["abcde"], list("abcde"))) == []


def test_it_can_pair_what_does_not_stand_at_the_same_place() -> None:
    student, teacher = ["ab", "c", "a", "bc"], ["a", "bc", "ab", "c"]
    assert listed(dp(student, teacher)) in ([(0, 1, 2, 3), (1, 2, 3, 4)], [(2, 3, 0, 1), (3, 4, 1, 2)])
    exact = align(Strings(student).encoding(student), Strings(teacher).encoding(teacher))
    assert listed(exact) == [(0, 2, 0, 2), (2, 4, 2, 4)]


def test_special_tokens_pair_by_role_and_never_as_text() -> None:
    assert listed(dp(["bos", "a", "eos"], ["bos", "a"])) == [(0, 1, 0, 1), (1, 2, 1, 2)]
    assert listed(dp(["pad"], ["pad"])) == []


def test_ids_without_bytes_are_equal_to_nothing() -> None:
    sides = [Encoding(np.array([4], np.int32), np.array([0]), np.array([3])) for _ in range(2)]
    assert len(align_dp(*sides, Strings(), Strings())) == 0  # type: ignore[arg-type]


def test_nothing_is_aligned_with_nothing() -> None:
    assert listed(dp([], [])) == listed(dp(["bos"], [])) == []
    assert listed(dp(["a", "b"], [])) == listed(dp([], ["a"] * 300)) == []


def random_cuts(text: str, seed: int, mean: float) -> list[str]:
    generator = np.random.default_rng(seed)
    cuts = [0, *sorted(generator.choice(np.arange(1, len(text)), int(len(text) / mean), replace=False).tolist())]
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


@pytest.mark.parametrize("alphabet", ["ab", "abcdefghijklmnop"])
def test_a_text_of_many_windows_is_as_good_as_the_exact_alignment_and_covered_in_order(alphabet: str) -> None:
    generator = np.random.default_rng(0)
    text = "".join(generator.choice(list(alphabet), 4000))
    student, teacher = random_cuts(text, 1, 2.5), random_cuts(text, 2, 2)
    sides = Strings(student).encoding(student), Strings(teacher).encoding(teacher)
    chunks, exact = dp(student, teacher), align(*sides)
    for start, end in ((chunks.student_start, chunks.student_end), (chunks.teacher_start, chunks.teacher_end)):
        assert (start[1:] >= end[:-1]).all()
        assert (end > start).all()
    for a, b, x, y in listed(chunks):
        assert "".join(student[a:b]) == "".join(teacher[x:y])
        assert 1 in (b - a, y - x)
    simple = [
        each
        for each in listed(exact)
        if sorted((each[1] - each[0], each[3] - each[2])) in ([1, k] for k in range(1, 5))
    ]
    kept = Chunks(*np.array(simple).T[:4], exact=np.ones(len(simple), np.bool_))
    assert score(chunks, *map(len, sides)) >= score(kept, *map(len, sides))


def test_a_stretch_without_a_common_boundary_that_is_longer_than_a_window_is_cut() -> None:
    size = 3 * LONGEST_WINDOW
    student, teacher = ["x"] + ["ab"] * size + ["y"], ["xa"] + ["ba"] * (size - 1) + ["b", "y"]
    chunks = dp(student, teacher)
    assert listed(chunks) == [(size + 1, size + 2, size + 1, size + 2)]


def word_cuts(words: Sequence[str], seed: int) -> list[str]:
    """Words, a few of them in two parts."""
    generator = np.random.default_rng(seed)
    divided = generator.random(len(words)) < 0.1
    places = generator.integers(1, [len(word) for word in words])
    parts = (
        (word[:place], word[place:]) if cut else (word,)
        for word, cut, place in zip(words, divided, places, strict=True)
    )
    return [piece for part in parts for piece in part]


def best_score(student: Sequence[str], teacher: Sequence[str]) -> float:
    """The last cell of the whole table; no special tokens."""
    whole = np.zeros((len(student) + 1, len(teacher) + 1))
    whole[:, 0], whole[0] = -1.5 * np.arange(len(student) + 1), -1.5 * np.arange(len(teacher) + 1)
    for i, s in enumerate(student, 1):
        for j, t in enumerate(teacher, 1):
            cells = [whole[i - 1, j - 1] + (3 if s == t else -3), whole[i - 1, j] - 1.5, whole[i, j - 1] - 1.5]
            for k in range(2, 5):
                if j >= k and s == "".join(teacher[j - k : j]):
                    cells.append(whole[i - 1, j - k] + 1.5 * k)
                if i >= k and t == "".join(student[i - k : i]):
                    cells.append(whole[i - k, j - 1] + 1.5 * k)
            whole[i, j] = max(cells)
    return float(whole[-1, -1])


def test_prose_of_many_windows_scores_as_the_whole_table() -> None:
    words = [f" {word}" for word in " ".join(random_texts(60)).split()][:300]
    student, teacher = word_cuts(words, 3), word_cuts(words, 4)
    assert score(dp(student, teacher), len(student), len(teacher)) == best_score(student, teacher)
    assert len(student) + len(teacher) > 2 * LONGEST_WINDOW


def test_one_open_token_alone_needs_no_table_and_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cuts of a text that are much alike, with few open tokens: as good as the whole table, but not where no
    table is filled for those with two."""
    opened: list[int] = []
    better = {False: 0, True: 0}
    windows, none = aligner._windows, np.zeros(0, np.int64)
    generator = np.random.default_rng(5)
    for _ in range(600):
        text = "".join(generator.choice(list("abcd"), 16))
        cuts = generator.random(15) < 0.6
        places = [(cuts ^ (generator.random(15) < 0.15)).nonzero()[0] + 1 for _ in range(2)]
        student, teacher = ([text[a:b] for a, b in pairwise([0, *side.tolist(), 16])] for side in places)
        best = best_score(student, teacher)
        monkeypatch.setattr(aligner, "_windows", lambda *given: opened.append(len(given[1])) or windows(*given))
        assert score(dp(student, teacher), len(student), len(teacher)) == best
        monkeypatch.setattr(aligner, "_windows", lambda nodes, _, *ends: windows(nodes, none, *ends))
        better[opened[-1] > 1] += score(dp(student, teacher), len(student), len(teacher)) < best
    assert opened.count(1) > 20
    assert better[False] == 0
    assert better[True] > 0


def test_lossy_tokenizers_are_aligned_where_their_strings_are_equal() -> None:
    text = "ab é c"
    byte_tokenizer = tokenizers.load("bytes")
    encoding = byte_tokenizer.encode(text)
    chunks = align_dp(encoding, encoding, byte_tokenizer, byte_tokenizer)
    assert len(chunks) == len(encoding)
    assert score(chunks, len(encoding), len(encoding)) == 3 * len(encoding)
