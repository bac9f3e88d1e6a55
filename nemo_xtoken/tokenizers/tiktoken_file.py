"""Rank files of the tiktoken library: one line for each token, its bytes in base64 and its rank, which is its id."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.tokenizers.base import VocabularyTokenizer
from nemo_xtoken.tokenizers.normalize import Changes, Normalized, composed
from nemo_xtoken.tokenizers.patterns import Family, find_family
from nemo_xtoken.tokenizers.spans import encode_utf8
from nemo_xtoken.tokenizers.threads import thread_count
from nemo_xtoken.tokenizers.token_batch import Ids, token_batch
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding

MAX_WHITESPACE_RUN = 900_000
"""Characters. tiktoken's regex engine keeps one state for each of them and panics near a million."""

_WORTH_A_TASK = 100
"""Characters: of shorter texts the library's batch spends most of its time on giving each to a thread."""

_WORTH_AN_ARRAY = 1000
"""Characters: of shorter texts the library makes a list sooner than an array."""

_HAS_NUMPY = hasattr(tiktoken.Encoding, "encode_to_numpy")
"""Whether the library hands out ids without making a list of them; older ones don't."""

_NEVER_SPECIAL = "\0not a special token\0"
"""Handing out arrays, the library looks for special tokens before it finds none of them allowed, and without any it
stops at every character to do so."""

_LONG_RUN = re.compile(rf"(?<!\s)\s{{{MAX_WHITESPACE_RUN}}}")


class RankFileTokenizer(VocabularyTokenizer):
    """A byte-level BPE from a rank file, encoded by the tiktoken library."""

    def __init__(self, spec: str, ranks: Mapping[bytes, int], family: Family) -> None:
        specials = _special_ids(ranks, family)
        self._names = {token_id: name for name, token_id in specials.items()}
        pieces = [b""] * (max(*ranks.values(), *specials.values()) + 1)
        for piece, rank in ranks.items():
            pieces[rank] = piece
        roles = {token_id: family.roles.get(name, name) for name, token_id in specials.items()}
        super().__init__(spec, Vocabulary(pieces, roles, f"pattern {family.pattern} nfc {family.nfc}"))
        self._composes = family.nfc
        # Without its special tokens the library reads their names as plain text, which is what we want.
        self._library = tiktoken.Encoding(
            spec,
            pat_str=family.pattern,
            mergeable_ranks=dict(ranks),
            special_tokens={_NEVER_SPECIAL: len(pieces)},
        )

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, on the library's threads."""
        sizes = [self._size(text) for text in texts]
        changed = dict(self._composed(texts, sizes))
        seen = [changed[number].text if number in changed else text for number, text in enumerate(texts)]
        tokens = token_batch(self._vocabulary, self._library_batch(seen))
        encodings = [each for _, group in tokens.groups() for each in group.side_by_side()]
        if changed:
            in_original = Changes.of(changed).in_original([encodings[number] for number in changed])
            for number, encoding in zip(changed, in_original, strict=True):
                encodings[number] = encoding
        return encodings

    def _size(self, text: str) -> int:
        """Bytes of a text. Raises TokenizerError for one that the library can't split."""
        if len(text) >= MAX_WHITESPACE_RUN and _LONG_RUN.search(text):
            raise TokenizerError(
                f"{self._spec}: expected fewer than {MAX_WHITESPACE_RUN} whitespace characters in a row, "
                "which is all that tiktoken can split; shorten the run"
            )
        return len(text) if text.isascii() else len(encode_utf8(text))

    def _composed(self, texts: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[int, Normalized]]:
        """The texts that are composed first, by their numbers."""
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True) if self._composes else ()):
            if (each := composed(text, size)) is not None:
                yield number, each

    def _library_batch(self, texts: list[str]) -> Sequence[Sequence[int] | Ids]:
        size = sum(map(len, texts))
        as_arrays = _HAS_NUMPY and size >= _WORTH_AN_ARRAY * len(texts)
        ids: Callable[[str], Sequence[int] | Ids] = self._ids if as_arrays else self._library.encode_ordinary
        num_threads = thread_count(len(texts))
        if num_threads == 1 or size < _WORTH_A_TASK * len(texts):
            return list(map(ids, texts))
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(ids, texts))

    def _ids(self, text: str) -> Ids:
        return self._library.encode_to_numpy(text, disallowed_special=()).view(np.int32)

    def _special_name(self, token_id: int) -> str:
        return self._names[token_id]


def _special_ids(ranks: Mapping[bytes, int], family: Family) -> Mapping[str, int]:
    """The published ids, but those after the highest rank where the file is a cut one or needs them itself."""
    highest = max(ranks.values())
    if highest >= family.highest_rank and set(family.specials.values()).isdisjoint(ranks.values()):
        return family.specials
    return {name: highest + 1 + offset for offset, name in enumerate(family.specials)}


def load_rank_file(spec: str, path: Path, pattern: str) -> RankFileTokenizer:
    """Load a rank file. pattern: a name of `patterns.FAMILIES`. Raises TokenizerError."""
    family = find_family(pattern)
    return RankFileTokenizer(spec, read_ranks(path), family)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Bytes -> rank of a rank file. Raises TokenizerError with the line that is wrong, or without all 256 bytes."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            piece, rank = _parse_line(path, number, line)
            ranks[piece] = rank
    check_ranks(path, ranks)
    return ranks


def check_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Raise TokenizerError unless each of the 256 bytes has a rank and no two tokens share one."""
    missing = sum(bytes([value]) not in ranks for value in range(256))
    if missing:
        raise TokenizerError(f"{path}: expected a rank for each of the 256 bytes, {missing} are missing")
    if len(set(ranks.values())) < len(ranks):
        raise TokenizerError(f"{path}: expected a rank of its own for each token, some share one")


def _parse_line(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    try:
        piece, rank = line.split()
        return base64.b64decode(piece, validate=True), int(rank)
    except (ValueError, binascii.Error):
        raise TokenizerError(
            f"{path}, line {number}: expected a token in base64 and its rank, got {line[:60]!r}"
        ) from None
