"""The class of a token, from its bytes."""

from __future__ import annotations

import pytest

from nemo_xtoken.projection import CRITICAL_CLASSES, TokenClass, token_class


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("7", "one_digit_numeral"),
        ("42", "two_digit_numeral"),
        ("007", "three_digit_numeral"),
        ("2024", "longer_numeral"),
        (" 19", "spaced_numeral"),
        ("!", "punctuation_mark"),
        (" (", "punctuation_mark"),
        ("~", "punctuation_mark"),
        ("//--", "punctuation_run"),
        (" ());", "punctuation_run"),
        ("Name", "word"),
        ("getName", "code"),
        (" toString", "code"),
        ("_id", "code"),
        (".length", "code"),
        ("MAX_SIZE", "code"),
        ("});\n", "code"),
        ("\t//", "code"),
        ("(0", "code"),
        (" the", "spaced_word"),
        (" ", "whitespace"),
        ("\n\n\t", "whitespace"),
        ("\u3000", "whitespace"),
        ("é", "latin"),
        (" naïve", "latin"),
        (" λ", "greek"),
        ("ов", "cyrillic"),
        ("ال", "arabic"),
        ("של", "hebrew"),
        ("के", "indic"),
        ("ி", "indic"),
        ("२", "indic"),
        ("ที่", "southeast_asian"),
        ("设", "han"),
        ("です", "kana"),
        ("ド", "kana"),
        ("니다", "hangul"),
        ("ქ", "other_script"),
        ("²", "other_script"),
        ("…", "symbol"),
        (" —", "symbol"),
        ("😀", "symbol"),
        (";\n", "code"),
        (" x2", "other"),
        ("'ll", "other"),
        ("a1", "other"),
        ("  the", "other"),
        ("'s", "other"),
        ("\x00", "other"),
    ],
)
def test_class_of_text(token: str, expected: str) -> None:
    assert token_class(token.encode()) == expected


@pytest.mark.parametrize("token", [b"\xe2\x82", b" \xd1", "а".encode() + b"\xd0", b"\xff"])
def test_bytes_that_are_no_text_alone_are_partial(token: bytes) -> None:
    assert token_class(token) is TokenClass.PARTIAL_UTF8


def test_no_bytes_are_unused() -> None:
    assert token_class(b"") is TokenClass.UNUSED


def test_every_ascii_character_has_its_class() -> None:
    counts: dict[TokenClass, int] = {}
    for value in range(128):
        name = token_class(bytes([value]))
        counts[name] = counts.get(name, 0) + 1
    assert counts[TokenClass.PUNCTUATION] == 32
    assert counts[TokenClass.WORD] == 52
    assert counts[TokenClass.ONE_DIGIT] == 10


def test_a_single_digit_and_a_run_of_punctuation_are_not_critical() -> None:
    assert TokenClass.ONE_DIGIT not in CRITICAL_CLASSES
    assert TokenClass.PUNCTUATION_RUN not in CRITICAL_CLASSES


def test_labels_are_for_people() -> None:
    assert TokenClass.TWO_DIGITS.label == "two-digit numeral"
    assert TokenClass.SPACED_WORD.label == "spaced word"
