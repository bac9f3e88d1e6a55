"""Every token that is marked exact stands for the bytes in its span.

The rules: to a tokenizer that keeps bytes, the bytes of the span are those of the token, less the bytes that it has no
token for; to one that composes characters, the composed bytes are; to any other, what its own normaliser makes of the
span is the token's text but for white space. A token at the start of a text may have a space that the text lacks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Library
from tokenizers import normalizers

from nemo_xtoken import tokenizers
from nemo_xtoken.tokenizers import Tokenizer, huggingface
from tests import awkward_text
from tests import small_tokenizers as small
from tests.unit import test_tokenizers, test_tokenizers_unknown

Piece = tuple[bytes, bytes, bool]
Rule = Callable[[bytes], bytes]

_SPACE = "\u2581"


def pieces(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """(bytes of the token, bytes of the text it covers, exact) of each token."""
    encoding, data = tokenizer.encode(text), text.encode()
    small.check_tiling(text, encoding)
    exact = [True] * len(encoding) if encoding.exact is None else encoding.exact.tolist()
    spans = zip(encoding.ids.tolist(), encoding.starts, encoding.ends, exact, strict=True)
    return [(tokenizer.token_bytes(i), data[start:end], each) for i, start, end, each in spans]


# Bytes without a token


@pytest.fixture(scope="session", params=[False, True], ids=["as_it_is", "after_a_space"])
def without_bytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("missing")
    path = small.byte_level_bpe(folder, add_prefix_space=request.param, missing=small.MISSING_CHARACTERS)
    return tokenizers.load(str(path))


def test_a_byte_without_a_token_belongs_to_the_token_after_it_and_at_the_end_to_the_last(
    without_bytes: Tokenizer,
) -> None:
    found = pieces(without_bytes, "\x04the [\x04\x06] 201\U0004f000x\x13\x14")
    assert [each for each in found if each[1]] == [
        (piece, part, True)
        for piece, part in (
            *((b"the", b"\x04the"), (b" ", b" "), (b"[", b"["), (b"]", b"\x04\x06]"), (b" 201", b" 201")),
            *((b"\x8f", b"\xf1\x8f"), (b"\x80", b"\x80"), (b"\x80", b"\x80"), (b"x", b"x\x13\x14")),
        )
    ]


def test_a_text_of_bytes_without_a_token_has_no_tokens(without_bytes: Tokenizer) -> None:
    assert b"".join(piece for piece, _, _ in pieces(without_bytes, "\x04\x06")).strip() == b""


@given(st.data())
@settings(max_examples=200)
def test_spans_are_right_next_to_bytes_without_a_token(without_bytes: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="the [=]\n\x04\x06\x13\x14\x16\x1d\U0004f000\U000bf000é", max_size=20))
    for piece, part, exact in pieces(without_bytes, text):
        assert exact
        assert piece.removeprefix(b" ") == part.translate(None, small.MISSING).removeprefix(b" ")


# Every tokenizer


def kept(data: bytes) -> bytes:
    """To byte-fallback pieces, the character that stands for a space is one."""
    return data.replace(_SPACE.encode(), b" ")


def less_missing(data: bytes) -> bytes:
    return data.translate(None, small.MISSING)


def composed(data: bytes) -> bytes:
    text = data.decode(errors="surrogateescape")
    return unicodedata.normalize("NFC", text).encode(errors="surrogateescape")


def composed_small(data: bytes) -> bytes:
    text = data.decode(errors="surrogateescape")
    return unicodedata.normalize("NFKC", text).lower().encode(errors="surrogateescape")


def without_accents(data: bytes) -> bytes:
    text = unicodedata.normalize("NFD", data.decode(errors="surrogateescape"))
    return "".join(char for char in text if unicodedata.category(char)[0] != "M").encode(errors="surrogateescape")


def solid(text: str) -> bytes:
    return "".join(text.replace(_SPACE, " ").split()).encode()


def normalized(path: Path) -> Rule:
    """What the normaliser of a file makes of bytes, without white space."""
    if path.suffix == ".model":
        processor = SentencePieceProcessor(model_file=str(path))
        return lambda data: solid(str(processor.Normalize(data.decode())))
    normalizer = Library.from_file(str(path)).normalizer
    return lambda data: solid(data.decode() if normalizer is None else normalizer.normalize_str(data.decode()))


def check_exact(tokenizer: Tokenizer, text: str, rule: Rule, *, white_space: bool) -> None:
    """Each token that is exact and has bytes is what the rule makes of its span."""
    for place, (piece, part, exact) in enumerate(pieces(tokenizer, text)):
        if not exact or not piece:
            continue
        expected = rule(part)
        if white_space:
            assert piece == expected or (place == 0 and piece == b" " + expected), (text, piece, part)
        else:
            assert solid(piece.decode()) == expected, (text, piece, part)


MAKERS: dict[str, Callable[[Path], str | Path]] = {
    **test_tokenizers.MAKERS,
    **{f"unknown_{name}": make for name, make in test_tokenizers_unknown.MAKERS.items()},
    "nfc_in_a_sequence": lambda folder: small.byte_level_bpe(
        folder, normalizer=normalizers.Sequence([normalizers.NFC()])
    ),
    "nfkc_small": lambda folder: small.byte_level_bpe(
        folder, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "without_accents": lambda folder: small.byte_level_bpe(
        folder, normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "unigram_with_markers": lambda folder: small.unigram(folder, special_tokens=["<unk>", "<pad>", "</s>"]),
}
RULES: dict[str, Rule] = {
    **dict.fromkeys((*test_tokenizers.LOSSLESS, "byte_level_bpe_prefix"), bytes),
    **dict.fromkeys(("spaced_bpe", "sentencepiece_bpe"), kept),
    **dict.fromkeys(("qwen", "byte_level_bpe_nfc", "nfc_in_a_sequence"), composed),
    "byte_level_bpe_without_bytes": less_missing,
    "nfkc_small": composed_small,
    "without_accents": without_accents,
}
"""Of tokenizers to which white space counts; of the others, what their own normaliser says."""


@pytest.fixture(scope="session")
def small_ones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Rule]]:
    specs = {name: str(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}
    return {
        name: (tokenizers.load(spec), RULES[name] if name in RULES else normalized(Path(spec)))
        for name, spec in specs.items()
    }


@given(st.data())
@settings(max_examples=50)
@pytest.mark.parametrize("name", MAKERS)
def test_exact_tokens_of_small_tokenizers_stand_for_their_spans(
    name: str, small_ones: dict[str, tuple[Tokenizer, Rule]], data: st.DataObject
) -> None:
    tokenizer, rule = small_ones[name]
    check_exact(tokenizer, data.draw(awkward_text.texts), rule, white_space=name in RULES)


@pytest.mark.parametrize("text", awkward_text.TEXTS)
def test_exact_tokens_of_awkward_texts_stand_for_their_spans(
    small_ones: dict[str, tuple[Tokenizer, Rule]], text: str
) -> None:
    for name, (tokenizer, rule) in small_ones.items():
        check_exact(tokenizer, text, rule, white_space=name in RULES)


@given(st.data())
@settings(max_examples=50)
@pytest.mark.parametrize("name", ["unigram", "nfkc_small", "wordpiece", "byte_level_bpe_without_bytes", "spaced_bpe"])
def test_exact_tokens_by_the_offsets_of_the_library_stand_for_their_spans(
    name: str, small_ones: dict[str, tuple[Tokenizer, Rule]], data: st.DataObject
) -> None:
    tokenizer, rule = small_ones[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "encodings_by_bytes", lambda tokens, texts, views: [None] * len(texts))
        check_exact(tokenizer, data.draw(awkward_text.texts), rule, white_space=name in RULES)


def test_only_tokens_that_their_offsets_do_not_fit_are_inexact(
    small_ones: dict[str, tuple[Tokenizer, Rule]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "encodings_by_bytes", lambda tokens, texts, views: [None] * len(texts))
    found = pieces(small_ones["unigram"][0], "the cafe\u0301 the cat")
    assert [each for each in found if not each[2]] == [
        ("é".encode(), b"", False),
        (b" the", "e\u0301 the".encode(), False),
    ]


PUBLISHED_RULES: dict[str, Rule] = {
    "smollm2": less_missing,
    "qwen": composed,
    "qwen3": composed,
    "mistral_v1": kept,
    "mistral_v3": kept,
    "gemma3": kept,
}
"""Of published tokenizers; all others keep every byte."""


@pytest.fixture(scope="module")
def published(all_tokenizers: Mapping[str, str], model_tokenizers: Path) -> dict[str, Tokenizer]:
    specs = {**all_tokenizers, **{name: str(model_tokenizers / name) for name in ("llama3_1", "qwen3")}}
    return {name: tokenizers.load(spec) for name, spec in specs.items()}


@pytest.mark.slow
@given(st.data())
@settings(max_examples=400)
def test_exact_tokens_of_published_tokenizers_stand_for_their_spans(
    published: dict[str, Tokenizer], data: st.DataObject
) -> None:
    text = data.draw(awkward_text.texts)
    for name, tokenizer in published.items():
        check_exact(tokenizer, text, PUBLISHED_RULES.get(name, bytes), white_space=True)


@pytest.mark.slow
@pytest.mark.parametrize("text", awkward_text.TEXTS)
def test_exact_tokens_of_published_tokenizers_stand_for_awkward_spans(
    published: dict[str, Tokenizer], text: str
) -> None:
    for name, tokenizer in published.items():
        check_exact(tokenizer, text, PUBLISHED_RULES.get(name, bytes), white_space=True)
