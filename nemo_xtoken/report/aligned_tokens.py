"""A sentence as both tokenizers cut it, chunk by chunk, for the page's two rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_xtoken.alignment import align
from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding

Kind = Literal["same", "divided", "inexact"]
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
_VISIBLE = _CONTROLS | str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Token:
    """A token as the page shows it: its piece of the sentence, with white space made visible."""

    label: str
    token_id: int


@dataclass(frozen=True)
class ChunkCell:
    """One chunk: the tokens of both sides that cover the same bytes."""

    student: tuple[Token, ...]
    teacher: tuple[Token, ...]
    kind: Kind


@dataclass(frozen=True)
class AlignedSentence:
    """A sentence's chunks in order."""

    text: str
    chunks: tuple[ChunkCell, ...]

    def count(self, kind: Kind) -> int:
        """Number of chunks of one kind."""
        return sum(chunk.kind == kind for chunk in self.chunks)


def visible(piece: bytes) -> str:
    """Bytes as text with white space and control characters shown by signs, and what has no sign at all by the numbers
    of its characters; bytes that are no text alone in hexadecimal."""
    if not piece:
        return "∅"
    try:
        text = piece.decode().translate(_VISIBLE)
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in piece)
    if any(character.isprintable() for character in text):
        return text
    return " ".join(f"U+{ord(character):04X}" for character in text)


def align_sentence(sentence: str, student: Tokenizer, teacher: Tokenizer) -> AlignedSentence:
    """Tokenize a sentence on both sides and pair the tokens chunk by chunk."""
    text = sentence.encode()
    student_encoding, teacher_encoding = student.encode(sentence), teacher.encode(sentence)
    chunks = align(student_encoding, teacher_encoding)
    cells: list[ChunkCell] = []
    for i in range(len(chunks)):
        left = tokens(text, student_encoding, int(chunks.student_start[i]), int(chunks.student_end[i]))
        right = tokens(text, teacher_encoding, int(chunks.teacher_start[i]), int(chunks.teacher_end[i]))
        cells.append(ChunkCell(left, right, kind_of(left, right, bool(chunks.exact[i]))))
    return AlignedSentence(sentence, tuple(cells))


def tokens(text: bytes, encoding: Encoding, start: int, end: int) -> tuple[Token, ...]:
    """Tokens start to end (exclusive) of one side."""
    spans = zip(encoding.ids[start:end], encoding.starts[start:end], encoding.ends[start:end], strict=True)
    return tuple(Token(visible(text[first:last]), int(token_id)) for token_id, first, last in spans)


def kind_of(student: tuple[Token, ...], teacher: tuple[Token, ...], exact: bool) -> Kind:
    """Whether both sides have one token here, divide it otherwise, or are not sure of its bytes."""
    if not exact:
        return "inexact"
    return "same" if len(student) == len(teacher) == 1 else "divided"
