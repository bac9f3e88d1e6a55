"""What every tokenizer offers, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from nemo_xtoken.types import Encoding


class Tokenizer(Protocol):
    """A tokenizer that knows which bytes of the text each of its tokens stands for.

    The text tokens of an `Encoding` tile the text: the first starts at byte 0, each ends where the next one starts, the
    last ends with the text. Bytes that the tokenizer drops belong to the token that follows them, at the end to the
    last one; a token may cover no bytes. Where several tokens share bytes that cannot be divided (one character
    normalised into two, two composed into one), the last of them covers all these bytes, and none of them is exact.
    """

    @property
    def spec(self) -> str:
        """The spec it was loaded from."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids: the highest id plus one, special tokens included."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the bytes of every id, the special tokens, the normaliser and the split pattern."""
        ...

    @property
    def special_roles(self) -> Mapping[int, str]:
        """Role of each special id: bos, eos, pad, unk, else the marker's own text such as <|im_start|>."""
        ...

    @property
    def special_names(self) -> Mapping[int, str]:
        """What each special id is called in the tokenizer's own file: <|begin_of_text|> where the role is bos."""
        ...

    def encode(self, text: str) -> Encoding:
        """Tokens of a text and their byte spans. Adds no special token, and reads none out of the text.

        Raises TokenizerError for a lone surrogate, which has no UTF-8.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, for many texts at once; on several threads, except in a forked process."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that an id stands for; empty for special and unused ids."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without the special ones; invalid UTF-8 becomes U+FFFD."""
        ...


def role_id(tokenizer: Tokenizer, role: str) -> int | None:
    """Lowest id that has a role (`bos`, `eos`, ..., or a marker's text), None if there is none."""
    return min((token_id for token_id, name in tokenizer.special_roles.items() if name == role), default=None)
