"""Text with characters that a tokenizer does not know: what each unknown token stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.tokenizers import Tokenizer, huggingface, role_id, sentencepiece_file
from nemo_xtoken.types import Encoding
from tests import small_tokenizers as small

MAKERS: dict[str, Callable[[Path], Path]] = {
    "sentencepiece_unigram": lambda folder: small.sentencepiece_file(folder, model_type="unigram", vocab_size=150),
    "sentencepiece_bpe": small.sentencepiece_file,
    "unigram": small.unigram,
    "split_unigram": small.split_unigram,
    "fused_bpe": lambda folder: small.unknown_bpe(folder, fuse_unk=True),
    "bpe": lambda folder: small.unknown_bpe(folder, fuse_unk=False),
    "wordpiece": small.wordpiece,
}

ALPHABET = "the cat  \n\tx,.!{~\\é\u0301\u0308ﬁ\xa0\u200b\ufe0f\u3000´Ａ中文雪🙂🙃漢각नि्▁\x00"
"""Known and unknown characters, some of which are dropped, replaced, or composed with a known neighbour."""

Piece = tuple[bytes, str, bool]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: tokenizers.load(str(make(tmp_path_factory.mktemp(name)))) for name, make in MAKERS.items()}


def certain(encoding: Encoding) -> np.ndarray:
    return np.ones(len(encoding), np.bool_) if encoding.exact is None else encoding.exact


def pieces(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """(bytes of the token, part of the text it covers, exact) of each token."""
    encoding, data = tokenizer.encode(text), text.encode()
    spans = zip(encoding.ids.tolist(), encoding.starts, encoding.ends, certain(encoding).tolist(), strict=True)
    return [(tokenizer.token_bytes(i), data[start:end].decode(), each) for i, start, end, each in spans]


def by_offsets(tokenizer: Tokenizer, text: str) -> Encoding:
    """The encoding by the library's own offsets."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (huggingface, sentencepiece_file):
            patch.setattr(module, "encodings_by_bytes", lambda tokens, texts, views: [None] * len(texts))
        return tokenizer.encode(text)


@given(st.data())
@settings(max_examples=400, deadline=None)
@pytest.mark.parametrize("name", MAKERS)
def test_spans_that_the_offsets_of_the_library_are_sure_of_are_found(
    name: str, loaded: dict[str, Tokenizer], data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet=ALPHABET, max_size=20))
    fast, slow = loaded[name].encode(text), by_offsets(loaded[name], text)
    small.check_tiling(text, fast)
    assert fast.ids.tolist() == slow.ids.tolist()
    sure = certain(slow)
    assert certain(fast)[sure].all()
    assert fast.starts[sure].tolist() == slow.starts[sure].tolist()
    assert fast.ends[sure].tolist() == slow.ends[sure].tolist()


@pytest.fixture
def without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "from_char_offsets", None)
    monkeypatch.setattr(sentencepiece_file, "from_offsets", None)


@pytest.mark.usefixtures("without_offsets")
@pytest.mark.parametrize("name", ["sentencepiece_unigram", "split_unigram", "fused_bpe"])
def test_a_run_of_unknown_characters_is_one_token_and_needs_no_offsets(name: str, loaded: dict[str, Tokenizer]) -> None:
    found = pieces(loaded[name], "the 🙂🙃 cat 漢a🫠")
    assert [(part, exact) for piece, part, exact in found if not piece] == [("🙂🙃", True), ("漢", True), ("🫠", True)]
    assert "".join(part for _, part, _ in found) == "the 🙂🙃 cat 漢a🫠"
    assert all(exact for _, _, exact in found)


@pytest.mark.usefixtures("without_offsets")
def test_unknown_characters_of_a_bpe_that_does_not_fuse_them_are_a_token_each(loaded: dict[str, Tokenizer]) -> None:
    assert [part for piece, part, exact in pieces(loaded["bpe"], "the 🙂🙃漢 cat") if not piece and exact] == [
        "🙂",
        "🙃",
        "漢",
    ]


@pytest.mark.usefixtures("without_offsets")
def test_a_word_with_an_unknown_character_is_one_token(loaded: dict[str, Tokenizer]) -> None:
    found = pieces(loaded["wordpiece"], "🙂the Cat,a🙃y🙃 漢漢 the")
    assert [(part, exact) for piece, part, exact in found if not piece] == [
        ("🙂the", True),
        ("a🙃y🙃", True),
        (" 漢", True),
        ("漢", True),
    ]


@pytest.mark.usefixtures("without_offsets")
def test_unknown_ascii_characters_are_found_too(loaded: dict[str, Tokenizer]) -> None:
    found = pieces(loaded["split_unigram"], "the {cat}\n~~ a")
    assert [part for piece, part, _ in found if not piece] == ["{", "}", "~~"]


def test_a_word_that_is_too_long_is_unknown_without_an_unknown_character(loaded: dict[str, Tokenizer]) -> None:
    word = "the" * 50
    assert pieces(loaded["wordpiece"], f"cat {word}")[-1] == (b"", f" {word}", True)


def test_a_character_of_which_a_part_is_unknown_is_shared_and_not_exact(loaded: dict[str, Tokenizer]) -> None:
    found = pieces(loaded["split_unigram"], "the 1¼ the")
    quarter = [each for each in found if "¼" in each[1]]
    assert [exact for _, _, exact in quarter] == [False]
    assert ("the", True) in [(part.strip(), exact) for _, part, exact in found]


def test_unknown_characters_that_compose_are_covered_whole(loaded: dict[str, Tokenizer]) -> None:
    found = pieces(loaded["split_unigram"], "the か\u3099. \u1100\u1161\u11a8 a")
    assert [(part, exact) for piece, part, exact in found if not piece] == [
        ("か\u3099", True),
        ("\u1100\u1161\u11a8", True),
    ]


def test_texts_with_and_without_unknown_characters_are_encoded_as_each_by_itself(loaded: dict[str, Tokenizer]) -> None:
    texts = ["the cat", "🙂", "", "the 1¼ {", "\u200b🙂 x", "a" * 300, " 🙃\n", "the"] * 3
    for tokenizer in loaded.values():
        for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
            alone = tokenizer.encode(text)
            for name in ("ids", "starts", "ends", "exact"):
                assert np.array_equal(getattr(encoding, name), getattr(alone, name))


def test_an_unknown_token_in_a_text_is_plain_text(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        assert role_id(tokenizer, "unk") is not None
        small.check_tiling("the <unk> [UNK] \xff", tokenizer.encode("the <unk> [UNK] \xff"))
