"""Small tokenizers that cut text at pseudo-random bytes, and documents for them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from nemo_xtoken.types import Encoding

FIRST_TEXT_ID = 2


class FakeTokenizer:
    """Tokens of 1 to `longest` bytes, cut by a hash of the bytes ahead; bos 0, eos 1, then ids in order of first use.

    Every `inexact_every`-th token's span is marked as uncertain.
    """

    def __init__(
        self,
        longest: int = 4,
        salt: int = 0,
        *,
        bos: bool = True,
        eos: bool = True,
        vocab_size: int = 100_000,
        inexact_every: int = 0,
    ) -> None:
        self.longest, self.salt, self.vocab_size, self.inexact_every = longest, salt, vocab_size, inexact_every
        self.spec = f"fake:{longest}:{salt}"
        self.fingerprint = f"{longest}-{salt}-{bos}-{eos}-{inexact_every}"
        self.special_roles = {i: role for i, (role, has) in enumerate((("bos", bos), ("eos", eos))) if has}
        self.special_names = self.special_roles
        self._ids: dict[bytes, int] = {}
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str) -> Encoding:
        content = text.encode()
        cuts = [0]
        while cuts[-1] < len(content):
            following = content[cuts[-1] : cuts[-1] + 3]
            cuts.append(min(len(content), cuts[-1] + 1 + zlib.crc32(following, self.salt) % self.longest))
        ids = [self._id(content[a:b]) for a, b in pairwise(cuts)]
        exact = None
        if self.inexact_every:
            exact = np.arange(len(ids)) % self.inexact_every != self.inexact_every - 1
        return Encoding(
            np.array(ids, np.int32), np.array(cuts[:-1], np.int64), np.array(cuts[1:], np.int64), exact=exact
        )

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [self.encode(text) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes.get(token_id, b"")

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode(errors="replace")

    def _id(self, token: bytes) -> int:
        if token not in self._ids:
            self._ids[token] = FIRST_TEXT_ID + len(self._ids)
            self._bytes[self._ids[token]] = token
        return self._ids[token]


def random_texts(count: int, seed: int = 0, shortest: int = 1, longest: int = 200) -> list[str]:
    """Texts of words, digits and characters of one to four bytes; lengths in characters."""
    rng = np.random.default_rng(seed)
    alphabet = np.array(list("abcdefghij     0123456789.,éß中文🙂"))
    return ["".join(rng.choice(alphabet, int(rng.integers(shortest, longest + 1)))) for _ in range(count)]


def write_jsonl(path: Path, texts: Sequence[str], key: str = "text") -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path
