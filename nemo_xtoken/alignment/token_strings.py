"""Strings of tokens as numbers, so that runs of tokens can be compared without putting their strings together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding, role_code

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

LONGEST_RUN = 4
"""Tokens of one side that may stand for one token of the other."""

_MARGIN = LONGEST_RUN - 1
"""Places in front of the first token that a run is looked for at."""

_RUN_LENGTHS: Places = np.arange(2, LONGEST_RUN + 1)
_OWN_LENGTHS: Places = np.repeat(np.arange(1, LONGEST_RUN + 1), np.arange(1, LONGEST_RUN + 1))
_OWN_OFFSETS: Places = np.concatenate([np.arange(length) for length in range(1, LONGEST_RUN + 1)])

_PAD = role_code("pad")
_RANDOM = np.random.default_rng(20260).integers(1, 1 << 63, 258, np.uint64)
_BYTES, (_BASE, _ROLE) = _RANDOM[:256], _RANDOM[256:] * 2 + 1


@dataclass(frozen=True)
class TokenStrings:
    """Numbers of tokens and of runs of them: equal for equal strings, and for others but once in 2^60.

    numbers   [n] uint64, of each token
    factors   [n] uint64, what the number of the tokens before it is multiplied by in a run
    nameless  the number of what is equal to nothing on the other side
    """

    numbers: Numbers
    factors: Numbers
    nameless: int

    def __len__(self) -> int:
        return len(self.numbers)

    def runs(self, places: Places, lengths: int | Places) -> Numbers:
        """The numbers of the runs of so many tokens, at most LONGEST_RUN, from each place on; `nameless` where there
        are fewer, or none at a place."""
        if isinstance(lengths, int):
            return self._table[lengths - 1].take(places + _MARGIN, mode="clip")
        return self._table.ravel().take(self.rows(lengths) + np.clip(places, -_MARGIN, len(self)))

    @cached_property
    def _table(self) -> Numbers:
        """[LONGEST_RUN, _MARGIN + n + 1] the run of each length from each place on, nameless on either side."""
        table = np.full((LONGEST_RUN, _MARGIN + len(self) + 1), self.nameless, np.uint64)
        table[0, _MARGIN:-1] = self.numbers
        for length in range(1, LONGEST_RUN):
            shorter, longer = table[length - 1, _MARGIN : -1 - length], table[length, _MARGIN : -1 - length]
            np.multiply(shorter, self.factors[length:], out=longer)
            longer += self.numbers[length:]
        return table

    @cached_property
    def remainders(self) -> NDArray[np.uint16]:
        """[LONGEST_RUN * (_MARGIN + n + 1)] `_table` modulo 2^16, flat: what differs in these is not equal."""
        return self._table.astype(np.uint16).ravel()

    def rows(self, lengths: Places) -> Places:
        """Where the runs of these lengths begin in a flat table: from there on one for each place."""
        return (lengths - 1) * (len(self) + _MARGIN + 1) + _MARGIN


def token_strings(encoding: Encoding, tokenizer: Tokenizer, nameless: int) -> TokenStrings:
    """The strings of an encoding's tokens: their bytes in the vocabulary, or their role.

    nameless is the number of tokens that are equal to none: padding, and ids without bytes, such as unknown ones.
    """
    numbers, factors = _vocabulary(tokenizer, nameless)
    own, factor = numbers.take(encoding.ids), factors.take(encoding.ids)
    if encoding.roles is not None:
        special = encoding.roles.nonzero()[0]
        roles = encoding.roles[special]
        own[special] = np.where(roles == _PAD, nameless, roles * _ROLE)
        factor[special] = _ROLE
    return TokenStrings(own, factor, nameless)


def may_have_equal(tokens: Places, own: TokenStrings, around: Places, other: TokenStrings) -> Flags:
    """[k] False for tokens without an equal among those around: a token, or one that is equal to a run that theirs is
    part of. True may be wrong, once in 2^16.

    tokens [k] places on their own side; around [m, k] places on the other, -1 for none
    """
    neighbours = other.remainders.take(around + _MARGIN)
    runs = own.remainders.take((own.rows(_OWN_LENGTHS) - _OWN_OFFSETS)[:, None] + tokens)
    return (runs[:, None] == neighbours).any(axis=(0, 1))


def may_equal_run(tokens: Places, own: TokenStrings, around: Places, other: TokenStrings) -> Flags:
    """[k] False for tokens that are equal to no run of several tokens that begins around; see `may_have_equal`."""
    runs = other.remainders.take(other.rows(_RUN_LENGTHS)[:, None, None] + around)
    return (runs == own.remainders.take(tokens + _MARGIN)).any(axis=(0, 1))


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, nameless: int) -> tuple[Numbers, Numbers]:
    """[vocab_size] the number of each id, `nameless` for those without bytes, and what a number is multiplied by when
    the id follows: a polynomial in _BASE over the bytes, modulo 2^64."""
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    values = _BYTES[np.frombuffer(b"".join(pieces), np.uint8)]
    starts = lengths.cumsum() - lengths
    numbers = np.zeros(len(pieces), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        longer = (lengths > place).nonzero()[0]
        numbers[longer] = numbers[longer] * _BASE + values[starts[longer] + place]
    powers = np.full(int(lengths.max(initial=0)) + 1, _BASE).cumprod(dtype=np.uint64)
    factors = np.where(lengths > 0, powers[lengths - 1], _ROLE)
    return np.where(numbers > 0, numbers, np.uint64(nameless)), factors
