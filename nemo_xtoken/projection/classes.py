"""Kinds of tokens, so that coverage can be told per kind."""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from nemo_xtoken.projection.pieces import decode_strictly


class TokenClass(StrEnum):
    """One kind of token; the order is that of tables. Numerals, punctuation, words and code are ASCII.

    Code is what programs have and prose hardly has: names in camel case, and marks together with letters, digits, line
    breaks or tabs ("_id", ".length", ");\n"), contractions ("'s") excepted.
    """

    ONE_DIGIT = "one_digit_numeral"
    TWO_DIGITS = "two_digit_numeral"
    THREE_DIGITS = "three_digit_numeral"
    MORE_DIGITS = "longer_numeral"
    SPACED_DIGITS = "spaced_numeral"
    PUNCTUATION = "punctuation_mark"
    PUNCTUATION_RUN = "punctuation_run"
    WORD = "word"
    SPACED_WORD = "spaced_word"
    CODE = "code"
    WHITESPACE = "whitespace"
    LATIN = "latin"
    GREEK = "greek"
    CYRILLIC = "cyrillic"
    ARABIC = "arabic"
    HEBREW = "hebrew"
    INDIC = "indic"
    SOUTHEAST_ASIAN = "southeast_asian"
    HAN = "han"
    KANA = "kana"
    HANGUL = "hangul"
    OTHER_SCRIPT = "other_script"
    SYMBOL = "symbol"
    PARTIAL_UTF8 = "partial_utf8"
    OTHER = "other"
    SPECIAL = "special"
    UNUSED = "unused"

    @property
    def label(self) -> str:
        """The name for people."""
        return self.value.replace("_digit", "-digit").replace("_", " ")


CRITICAL_CLASSES = (
    TokenClass.TWO_DIGITS,
    TokenClass.THREE_DIGITS,
    TokenClass.MORE_DIGITS,
    TokenClass.SPACED_DIGITS,
    TokenClass.PUNCTUATION,
)
"""Multi-digit numerals and ASCII punctuation marks: a loss that suppresses these costs the student its arithmetic.

Runs of punctuation ("//----") are not among them: vocabularies hold thousands and agree on few, and few matter.
"""

_MARK = r"[!-/:-@\[-`{-~]"
_WITH_MARK = rf"(?!'[A-Za-z]+)[\s!-~]*{_MARK}[\s!-~]*"
_CAMEL_CASE = r" ?[a-z]+[A-Z][A-Za-z]*"
_ASCII_PATTERNS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (_CAMEL_CASE, TokenClass.CODE),
        (r"[A-Za-z]+", TokenClass.WORD),
        (r" [A-Za-z]+", TokenClass.SPACED_WORD),
        (r"[0-9]", TokenClass.ONE_DIGIT),
        (r"[0-9]{2}", TokenClass.TWO_DIGITS),
        (r"[0-9]{3}", TokenClass.THREE_DIGITS),
        (r"[0-9]{4,}", TokenClass.MORE_DIGITS),
        (r" [0-9]+", TokenClass.SPACED_DIGITS),
        (f" ?{_MARK}", TokenClass.PUNCTUATION),
        (f" ?{_MARK}{{2,}}", TokenClass.PUNCTUATION_RUN),
        (_WITH_MARK, TokenClass.CODE),
    )
)
_INDIC = (
    *("DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA"),
    *("TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA"),
)
_SOUTHEAST_ASIAN = ("THAI", "LAO", "KHMER", "MYANMAR")
_SCRIPTS = {
    "LATIN": TokenClass.LATIN,
    "GREEK": TokenClass.GREEK,
    "CYRILLIC": TokenClass.CYRILLIC,
    "ARABIC": TokenClass.ARABIC,
    "HEBREW": TokenClass.HEBREW,
    "CJK": TokenClass.HAN,
    "HIRAGANA": TokenClass.KANA,
    "KATAKANA": TokenClass.KANA,
    "HANGUL": TokenClass.HANGUL,
    **dict.fromkeys(_INDIC, TokenClass.INDIC),
    **dict.fromkeys(_SOUTHEAST_ASIAN, TokenClass.SOUTHEAST_ASIAN),
}


def token_class(token: bytes) -> TokenClass:
    """The class of a text token from its bytes; UNUSED for none. Never SPECIAL, which no bytes can tell."""
    if not token:
        return TokenClass.UNUSED
    text = decode_strictly(token)
    if text is None:
        return TokenClass.PARTIAL_UTF8
    if text.isspace():
        return TokenClass.WHITESPACE
    if not text.isascii():
        return _script(text)
    return next((name for pattern, name in _ASCII_PATTERNS if pattern.fullmatch(text)), TokenClass.OTHER)


def _script(text: str) -> TokenClass:
    """The script of the first letter, mark or digit beyond ASCII, by the first word of its Unicode name."""
    for char in text:
        if not char.isascii() and unicodedata.category(char)[0] in "LMN":
            return _SCRIPTS.get(unicodedata.name(char, "").partition(" ")[0], TokenClass.OTHER_SCRIPT)
    return TokenClass.SYMBOL
