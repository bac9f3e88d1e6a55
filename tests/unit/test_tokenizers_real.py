"""Published tokenizers, held against the tiktoken library and what is known of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.alignment import align
from nemo_xtoken.tokenizers import Tokenizer, role_id
from nemo_xtoken.tokenizers.tiktoken_file import read_ranks
from tests import small_tokenizers as small

TEXT = "It has 201 ducks and 7 naïve cafés, that's 3.14159 — 👩‍👩‍👧\r\n\tif x:  return\n\n\n한국어 中文 ไทย I'LL"

# The makers' own patterns, in the form that their code has them.
CL100K_REFERENCE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


@pytest.fixture(scope="session")
def qwen(real_tokenizers: Path) -> Tokenizer:
    return tokenizers.load(f"{real_tokenizers / 'qwen.tiktoken'}?pattern=qwen")


@pytest.fixture(scope="session")
def cl100k(real_tokenizers: Path) -> Tokenizer:
    return tokenizers.load(f"{real_tokenizers / 'cl100k_base.tiktoken'}?pattern=cl100k")


@pytest.fixture(scope="session")
def cl100k_reference(real_tokenizers: Path) -> tiktoken.Encoding:
    ranks = read_ranks(real_tokenizers / "cl100k_base.tiktoken")
    return tiktoken.Encoding("reference", pat_str=CL100K_REFERENCE, mergeable_ranks=ranks, special_tokens={})


def test_sizes_and_special_ids_are_the_published_ones(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    assert (qwen.vocab_size, cl100k.vocab_size) == (151646, 100277)
    assert qwen.special_roles == {151643: "eos", 151644: "<|im_start|>", 151645: "<|im_end|>"}
    assert cl100k.special_roles == {
        100257: "eos",
        100258: "<|fim_prefix|>",
        100259: "<|fim_middle|>",
        100260: "<|fim_suffix|>",
        100276: "<|endofprompt|>",
    }


def test_ids_are_the_published_ones(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    assert cl100k.encode("hello world").ids.tolist() == [15339, 1917]
    assert cl100k.encode("201").ids.tolist() == [679]
    assert qwen.encode("hello world").ids.tolist() == [14990, 1879]
    assert qwen.encode("201").ids.tolist() == [17, 15, 16]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_the_tiktoken_library(
    cl100k: Tokenizer, cl100k_reference: tiktoken.Encoding, data: st.DataObject
) -> None:
    text = data.draw(st.text(max_size=40) | st.text(alphabet="aI'sSLl ve\r\n\t123.é中 ſ", max_size=40))
    encoding = cl100k.encode(text)
    assert encoding.ids.tolist() == cl100k_reference.encode_ordinary(text)
    small.check_bytes(cl100k, text, encoding)


def test_multi_digit_numerals_are_tokens_of_the_one_and_not_of_the_other(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    numerals = [str(n).zfill(width).encode() for width in (2, 3) for n in range(10**width)]
    for tokenizer, expected in ((cl100k, 1100), (qwen, 0)):
        vocabulary = {tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)}
        assert sum(numeral in vocabulary for numeral in numerals) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_both_tokenize_and_align_any_form_of_a_text(qwen: Tokenizer, cl100k: Tokenizer, form: str) -> None:
    text = unicodedata.normalize(form, TEXT) if form == "NFD" else TEXT
    student, teacher = cl100k.encode(text), qwen.encode(text)
    small.check_bytes(cl100k, text, student)
    small.check_tiling(text, teacher)
    assert qwen.decode(teacher.ids) == unicodedata.normalize("NFC", text)
    chunks = align(student, teacher)
    assert (student.ends[chunks.student_end - 1] == teacher.ends[chunks.teacher_end - 1]).all()
    assert (chunks.student_end[-1], chunks.teacher_end[-1]) == (len(student), len(teacher))
    assert chunks.exact.mean() > 0.9


def test_201_is_one_chunk_of_one_and_three_tokens(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    chunks = align(cl100k.encode("201"), qwen.encode("201"))
    assert (chunks.student_end.tolist(), chunks.teacher_end.tolist()) == ([1], [3])


def test_an_emoji_split_on_both_sides_is_whole_in_its_chunk(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    text = "a🫠b"
    student, teacher = cl100k.encode(text), qwen.encode(text)
    assert len(student) > 3
    chunks = align(student, teacher)
    ends = student.ends[chunks.student_end - 1]
    assert np.isin([1, 5, 6], ends).all()


def test_ends_of_text_pair(qwen: Tokenizer, cl100k: Tokenizer) -> None:
    assert role_id(qwen, "eos") == 151643
    assert role_id(cl100k, "eos") == 100257
