"""Chunks of every pair of tokenizers: the finest common partition of the bytes, whatever the text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.alignment import align
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding
from tests import awkward_text
from tests import small_tokenizers as small
from tests.unit.test_tokenizers import MAKERS


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A small tokenizer of each kind."""
    return {name: tokenizers.load(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def published(all_tokenizers: Mapping[str, str]) -> dict[str, Tokenizer]:
    return {name: tokenizers.load(spec) for name, spec in all_tokenizers.items()}


@pytest.fixture(scope="module")
def every_family(published: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The published tokenizers, ByT5's bytes among them, and those that lose or change text, which a test makes."""
    lossy = ("wordpiece", "unigram", "sentencepiece_unigram")
    return published | {name: tokenizers.load(MAKERS[name](tmp_path_factory.mktemp(name))) for name in lossy}


def boundaries(encoding: Encoding) -> set[int]:
    spans = zip(encoding.starts.tolist(), encoding.ends.tolist(), strict=True)
    return {end for start, end in spans if end > start}


def runs(encoding: Encoding, common: set[int]) -> list[tuple[int, int, bool]]:
    """Tokens of each stretch between common boundaries: first, last (exclusive), whether all are exact."""
    found: list[tuple[int, int, bool]] = []
    first, all_exact = 0, True
    for i in range(len(encoding)):
        all_exact &= encoding.exact is None or bool(encoding.exact[i])
        if encoding.ends[i] > encoding.starts[i] and int(encoding.ends[i]) in common:
            found.append((first, i + 1, all_exact))
            first, all_exact = i + 1, True
    if found and first < len(encoding):  # tokens without bytes at the end belong to the last stretch
        found[-1] = (found[-1][0], len(encoding), found[-1][2] and all_exact)
    return found


def check_pair(text: str, student: Encoding, teacher: Encoding) -> None:
    common = boundaries(student) & boundaries(teacher)
    chunks = align(student, teacher)
    left, right = runs(student, common), runs(teacher, common)
    assert list(zip(chunks.student_start.tolist(), chunks.student_end.tolist(), strict=True)) == [a[:2] for a in left]
    assert list(zip(chunks.teacher_start.tolist(), chunks.teacher_end.tolist(), strict=True)) == [b[:2] for b in right]
    assert chunks.exact.tolist() == [a[2] and b[2] for a, b in zip(left, right, strict=True)]
    assert {int(side.ends[-1]) for side in (student, teacher) if len(side)} <= {len(text.encode())}


def check_text(text: str, sides: Mapping[str, Tokenizer]) -> None:
    """Every tokenizer tiles the text, and every pair of them shares its bytes as the definition says."""
    encodings = [tokenizer.encode(text) for tokenizer in sides.values()]
    for encoding in encodings:
        small.check_tiling(text, encoding)
    for student, teacher in product(encodings, repeat=2):
        check_pair(text, student, teacher)


@pytest.mark.parametrize("text", awkward_text.TEXTS)
def test_awkward_texts_are_aligned_by_every_pair(loaded: dict[str, Tokenizer], text: str) -> None:
    check_text(text, loaded)


@given(st.data())
@settings(max_examples=50)
def test_generated_texts_are_aligned_by_every_pair(loaded: dict[str, Tokenizer], data: st.DataObject) -> None:
    check_text(data.draw(awkward_text.texts), loaded)


@pytest.mark.slow
@pytest.mark.parametrize("text", awkward_text.TEXTS)
def test_awkward_texts_are_aligned_by_every_published_pair(every_family: dict[str, Tokenizer], text: str) -> None:
    check_text(text, every_family)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
def test_generated_texts_are_aligned_by_every_published_pair(
    every_family: dict[str, Tokenizer], data: st.DataObject
) -> None:
    check_text(data.draw(awkward_text.texts), every_family)


@pytest.mark.slow
def test_published_ids_are_the_known_ones(published: dict[str, Tokenizer]) -> None:
    assert {
        name: published[name].encode("hello world").ids.tolist() for name in ("o200k_base", "r50k_base", "llama3")
    } == {
        "o200k_base": [24912, 2375],
        "r50k_base": [31373, 995],
        "llama3": [15339, 1917],
    }
    assert published["tekken"].encode("Hello world").ids.tolist() == [22177, 4304]
    assert published["mistral_v1"].encode("hello").ids.tolist() == [6312, 28709]


@pytest.mark.slow
def test_published_numerals_are_counted(published: dict[str, Tokenizer]) -> None:
    """Two- and three-digit numerals that are tokens."""
    known = {"llama3": (100, 1000), "o200k_base": (100, 1000), "r50k_base": (100, 777), "tekken": (0, 0)}
    known |= {"gemma3": (0, 0), "mistral_v1": (0, 0), "qwen": (0, 0), "deepseek_v3": (100, 1000), "smollm2": (0, 0)}
    for name, expected in known.items():
        pieces = {published[name].token_bytes(token_id) for token_id in range(published[name].vocab_size)}
        counts = [sum(str(n).zfill(width).encode() in pieces for n in range(10**width)) for width in (2, 3)]
        assert tuple(counts) == expected, name


@pytest.mark.slow
def test_only_what_is_lost_is_inexact(published: dict[str, Tokenizer]) -> None:
    """Byte-level and byte-fallback tokenizers lose nothing of a text that needs no composition."""
    for text in awkward_text.TEXTS:
        for name, tokenizer in published.items():
            if name != "qwen":
                assert tokenizer.encode(text).exact is None, (name, text)
