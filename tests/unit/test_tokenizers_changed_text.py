"""Tokenizers that change the text: the spans are those of the original."""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from nemo_xtoken import tokenizers
from nemo_xtoken.alignment import align
from nemo_xtoken.tokenizers import Tokenizer, huggingface, role_id, sentencepiece_file
from nemo_xtoken.tokenizers.normalize import composed
from nemo_xtoken.types import Encoding
from tests import small_tokenizers as small

COMPOSING = "eaAx1 éÅ가각\u0301\u030a\u0323\u0344\u0300\u1100\u1161\u11a8\u212b\u0958\u0915\u093c\u09c7\u09be\u0f73🙂"


def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[bytes, str, bool]]:
    """(bytes of the token, part of the text it covers, exact) of each token."""
    encoding, data = tokenizer.encode(text), text.encode()
    exact = [True] * len(encoding) if encoding.exact is None else encoding.exact.tolist()
    spans = zip(encoding.ids.tolist(), encoding.starts, encoding.ends, exact, strict=True)
    return [(tokenizer.token_bytes(i), data[start:end].decode(), each) for i, start, end, each in spans]


def by_unicode(data: bytes) -> bytes:
    text = data.decode(errors="surrogateescape")
    return unicodedata.normalize("NFC", text).encode(errors="surrogateescape")


@given(st.text(max_size=20) | st.text(alphabet=COMPOSING, max_size=20))
@settings(max_examples=500, deadline=None)
def test_composition_is_that_of_unicode_and_every_certain_byte_divides_it(text: str) -> None:
    data = text.encode()
    normalized = composed(text, len(data))
    if normalized is None:
        assert unicodedata.normalize("NFC", text) == text
        return
    assert normalized.text == unicodedata.normalize("NFC", text)
    assert normalized.size == len(data)
    result = normalized.text.encode()
    origin, certain = normalized.edits.in_original(np.arange(len(result) + 1))
    cuts = certain.nonzero()[0].tolist()
    assert (cuts[0], cuts[-1]) == (0, len(result))
    for first, last in pairwise(cuts):
        assert by_unicode(data[origin[first] : origin[last]]) == result[first:last]


def test_every_assigned_character_is_composed_as_by_unicode() -> None:
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code <= 0xDFFF]
    text = "|".join("e" + char for char in characters)
    normalized = composed(text, len(text.encode()))
    assert normalized is not None
    assert normalized.text == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="session", params=["rank_file", "tokenizer_json"])
def nfc_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("nfc")
    if request.param == "rank_file":
        return tokenizers.load(f"{small.rank_file(folder)}?pattern=qwen")
    return tokenizers.load(str(small.byte_level_bpe(folder, normalizer=normalizers.NFC())))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_tokens_of_an_nfc_tokenizer_stand_for_the_bytes_they_compose(
    nfc_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet=COMPOSING, max_size=20) | st.text(max_size=20))
    encoding = nfc_tokenizer.encode(text)
    small.check_tiling(text, encoding)
    for source, target in small.groups(nfc_tokenizer, text, encoding):
        assert by_unicode(source) == target


def test_a_composed_character_in_one_token_is_exact_and_a_divided_one_is_not(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(f"{small.rank_file(tmp_path)}?pattern=qwen")
    assert pieces(tokenizer, "cafe\u0301 A\u030ax") == [
        (b"c", "c", True),
        (b"a", "a", True),
        (b"f\xc3\xa9", "fe\u0301", True),
        (b" ", " ", True),
        (b"\xc3", "", False),
        (b"\x85", "A\u030a", False),
        (b"x", "x", True),
    ]


def test_decomposed_text_is_aligned_with_a_tokenizer_that_keeps_it(tmp_path: Path) -> None:
    student = tokenizers.load("bytes")
    teacher = tokenizers.load(f"{small.rank_file(tmp_path)}?pattern=qwen")
    text = unicodedata.normalize("NFD", "é Å x")
    chunks = align(student.encode(text), teacher.encode(text))
    sizes = (chunks.student_end - chunks.student_start).tolist()
    assert sizes == [3, 1, 3, 1, 1]
    assert chunks.exact.tolist() == [True, True, False, True, True]


# SentencePiece


@pytest.fixture(scope="session")
def like_llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(str(small.sentencepiece_file(tmp_path_factory.mktemp("sp"), **small.LIKE_LLAMA)))


@pytest.fixture(scope="session")
def nfkc_unigram(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("unigram")
    return tokenizers.load(str(small.sentencepiece_file(folder, model_type="unigram", vocab_size=150)))


@pytest.fixture(scope="session")
def like_llama_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(str(small.spaced_bpe(tmp_path_factory.mktemp("spaced"))))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_byte_fallback_and_dummy_prefix_leave_every_span_exact(
    like_llama: Tokenizer, like_llama_json: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=20))
    for tokenizer in (like_llama, like_llama_json):
        encoding = tokenizer.encode(text)
        small.check_bytes(tokenizer, text, encoding, prefix=b" ")
        assert encoding.exact is None
        assert tokenizer.decode(encoding.ids) == text


def test_the_dummy_prefix_covers_no_bytes_and_bytes_of_a_character_one_each(like_llama: Tokenizer) -> None:
    assert pieces(like_llama, "x")[0] in ((b" ", "", True), (b" x", "x", True))
    encoding = like_llama.encode("🙂")
    assert [like_llama.token_bytes(i) for i in encoding.ids.tolist()] == [b" ", b"\xf0", b"\x9f", b"\x99", b"\x82"]
    assert (encoding.starts.tolist(), encoding.ends.tolist()) == ([0, 0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_runs_of_spaces_keep_their_bytes(like_llama: Tokenizer) -> None:
    text = "  the    cat  "
    small.check_bytes(like_llama, text, like_llama.encode(text), prefix=b" ")


def test_the_character_for_a_space_in_a_text_keeps_its_three_bytes(like_llama: Tokenizer) -> None:
    text = "the▁cat"
    encoding = like_llama.encode(text)
    small.check_tiling(text, encoding)
    boundaries = {0, *encoding.ends.tolist()}
    assert {3, 9} <= boundaries
    assert not {4, 5} & boundaries
    assert encoding.exact is None


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_tokens_of_a_compatibility_normaliser_stand_for_what_they_normalise(
    nfkc_unigram: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet="the cat ﬁ½①ée\u0301ＡＢ x", max_size=15))
    encoding = nfkc_unigram.encode(text)
    small.check_tiling(text, encoding)
    unknown = role_id(nfkc_unigram, "unk")
    if unknown in encoding.ids or not len(encoding):
        return
    for source, target in small.groups(nfkc_unigram, text, encoding):
        assert unicodedata.normalize("NFKC", source.decode()).split() == target.decode().split()


def test_parts_of_an_expanded_character_share_it_and_are_not_exact(nfkc_unigram: Tokenizer) -> None:
    found = pieces(nfkc_unigram, "xﬁx")
    assert "".join(part for _, part, _ in found) == "xﬁx"
    ligature = [each for each in found if "ﬁ" in each[1]]
    assert len(ligature) == 1
    f = next(each for each in found if each[0].endswith(b"f"))
    assert f[1:] in (("", False), ("x", True)) or f is ligature[0]
    if f is not ligature[0]:
        assert not ligature[0][2]


def test_dropped_white_space_belongs_to_the_token_that_follows_and_at_the_end_to_the_last(
    nfkc_unigram: Tokenizer,
) -> None:
    found = pieces(nfkc_unigram, "  cat   mat  ")
    spans = [part for _, part, _ in found]
    assert "".join(spans) == "  cat   mat  "
    assert spans[0].startswith("  ")
    assert spans[-1].endswith("  ")
    assert all(exact for _, _, exact in found)
    assert len(nfkc_unigram.encode(" \n ")) == 0


def test_unknown_characters_are_one_token_with_their_bytes(nfkc_unigram: Tokenizer) -> None:
    found = pieces(nfkc_unigram, "the 🙂🙃 cat")
    assert ("", "🙂🙃", True) in [(piece.decode(), part, exact) for piece, part, exact in found]


def test_the_dummy_prefix_of_a_changed_text_is_exact_too(nfkc_unigram: Tokenizer) -> None:
    assert pieces(nfkc_unigram, "🙂")[:2] == [(b" ", "", True), (b"", "🙂", True)]


def test_roles_of_a_sentencepiece_model(like_llama: Tokenizer) -> None:
    assert like_llama.special_roles == {0: "unk", 1: "bos", 2: "eos"}


def test_user_defined_pieces_are_text_and_control_pieces_are_not(tmp_path: Path) -> None:
    path = small.sentencepiece_file(tmp_path, user_defined_symbols=["<tool>"], control_symbols=["<|im_start|>"])
    tokenizer = tokenizers.load(str(path))
    tool, start = role_id(tokenizer, "<tool>"), role_id(tokenizer, "<|im_start|>")
    assert tool is None
    assert start is not None
    text = "a<tool><|im_start|>"
    ids = tokenizer.encode(text).ids.tolist()
    assert b"<tool>" in [tokenizer.token_bytes(token_id) for token_id in ids]
    assert start not in ids


# Hugging Face


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_an_added_prefix_space_covers_no_bytes(prefixing: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=20))
    small.check_bytes(prefixing, text, prefixing.encode(text), prefix=b" ")


@pytest.fixture(scope="session")
def prefixing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(str(small.byte_level_bpe(tmp_path_factory.mktemp("prefix"), add_prefix_space=True)))


def test_wordpiece_spans_are_those_of_the_text_before_lower_casing(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(str(small.wordpiece(tmp_path)))
    text = "The CAT,  Café x"
    found = pieces(tokenizer, text)
    assert "".join(part for _, part, _ in found) == text
    assert all(exact for _, _, exact in found)
    assert found[0][1].startswith("T")
    assert [part for _, part, _ in found if "," in part] == [","]
    assert any(part.startswith("  C") for _, part, _ in found)
    small.check_tiling("  the ", tokenizer.encode("  the "))
    assert len(tokenizer.encode("   ")) == 0


def test_wordpiece_is_aligned_with_bytes(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(str(small.wordpiece(tmp_path)))
    text = "The CAFE\u0301 cat 你好 "
    encoding = tokenizer.encode(text)
    chunks = align(encoding, tokenizers.load("bytes").encode(text))
    assert chunks.student_end[-1] == len(encoding)
    assert chunks.teacher_end[-1] == len(text.encode())


def test_templates_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(str(small.byte_level_bpe(tmp_path)))
    text = "the cat sat on the other mat"
    encodings = [tokenizer.encode(text), *tokenizer.encode_batch([text, "a"])]
    assert [tokenizer.decode(encoding.ids) for encoding in encodings] == [text, text, "a"]
    assert not set(tokenizer.special_roles) & set(encodings[0].ids.tolist())


def test_roles_go_by_well_known_names_without_a_config(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(str(small.byte_level_bpe(tmp_path)))
    assert tokenizer.special_roles == {0: "bos", 1: "eos", 2: "<|im_start|>"}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_roles_come_from_the_config_beside_the_file(tmp_path: Path, name: str) -> None:
    small.byte_level_bpe(tmp_path)
    config = {"eos_token": {"content": "<|im_start|>"}, "pad_token": "<|im_start|>", "bos_token": None}
    (tmp_path / name).write_text(json.dumps(config))
    assert tokenizers.load(str(tmp_path)).special_roles == {0: "<s>", 1: "</s>", 2: "eos"}


def test_pieces_that_are_also_added_tokens_keep_their_spaces(tmp_path: Path) -> None:
    path = small.spaced_bpe(tmp_path)
    description = json.loads(path.read_text())
    the = description["model"]["vocab"]["▁the"]
    description["added_tokens"].append(
        description["added_tokens"][0] | {"id": the, "content": "▁the", "special": False}
    )
    path.write_text(json.dumps(description))
    tokenizer = tokenizers.load(str(path))
    text = "the    cat"
    encoding = tokenizer.encode(text)
    assert the in encoding.ids
    assert tokenizer.token_bytes(the) == b" the"
    small.check_bytes(tokenizer, text, encoding, prefix=b" ")


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    path = small.byte_level_bpe(tmp_path)
    description = json.loads(path.read_text())
    added = {"id": 400, "content": "<think>", "special": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    description["added_tokens"].append(added | flags)
    path.write_text(json.dumps(description))
    tokenizer = tokenizers.load(str(path))
    text = "the <think> cat"
    encoding = tokenizer.encode(text)
    assert 400 in encoding.ids
    assert tokenizer.token_bytes(400) == b"<think>"
    small.check_bytes(tokenizer, text, encoding)


# White space and single characters, with and without the library's offsets


def certain(encoding: Encoding) -> list[bool]:
    return [True] * len(encoding) if encoding.exact is None else encoding.exact.tolist()


def test_a_token_of_white_space_covers_the_whole_run_that_became_it(nfkc_unigram: Tokenizer) -> None:
    found = pieces(nfkc_unigram, "1  1 \n\t1 1")
    assert [each for each in found if each[0] == b" "] == [
        (b" ", "", True),
        (b" ", "  ", True),
        (b" ", " \n\t", True),
        (b" ", " ", True),
    ]
    assert [part for piece, part, _ in found if piece == b"1"] == ["1"] * 4


@given(st.data())
@settings(max_examples=200)
def test_spans_around_white_space_are_those_of_the_offsets_of_the_library(
    nfkc_unigram: Tokenizer, like_bert: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.text(alphabet="the cat  \n\t\rTHE,x1…ﬁ½\xa0éÉe\u0301\u200b\u3000Ａ\xad´▁中🙂", max_size=20))
    for tokenizer, module in ((nfkc_unigram, sentencepiece_file), (like_bert, huggingface)):
        encoding = tokenizer.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "encodings_by_bytes", lambda tokens, texts, views: [None] * len(texts))
            slow = tokenizer.encode(text)
        assert encoding.ends.tolist() == slow.ends.tolist()
        assert encoding.starts.tolist() == slow.starts.tolist()
        assert certain(encoding) == certain(slow)


@pytest.fixture(scope="session")
def like_bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.load(str(small.wordpiece(tmp_path_factory.mktemp("wordpiece"))))


@pytest.mark.parametrize("text", ["the cat", " the\n\n cat\t", "THE  cat\r\n"])
def test_white_space_and_case_alone_need_no_offsets(
    nfkc_unigram: Tokenizer, like_bert: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "from_char_offsets", None)
    monkeypatch.setattr(sentencepiece_file, "from_offsets", None)
    small.check_tiling(text, like_bert.encode(text))
    small.check_tiling(text.lower(), nfkc_unigram.encode(text.lower()))


def test_characters_that_are_replaced_one_by_one_need_no_offsets(
    nfkc_unigram: Tokenizer, like_bert: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "from_char_offsets", None)
    monkeypatch.setattr(sentencepiece_file, "from_offsets", None)
    assert pieces(like_bert, "Thé cat")[0] == (b"the", "Thé", True)
    found = pieces(nfkc_unigram, "ｔhe\xa0 cat")
    assert b"".join(piece for piece, _, _ in found) == b" the cat"
    assert "".join(part for _, part, _ in found) == "ｔhe\xa0 cat"
    assert all(exact for _, _, exact in found)
