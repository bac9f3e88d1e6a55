"""Every token that is marked exact stands for the bytes in its span."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken import tokenizers
from nemo_xtoken.tokenizers import Tokenizer
from tests import small_tokenizers as small

Piece = tuple[bytes, bytes, bool]


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
