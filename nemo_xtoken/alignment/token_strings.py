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

    def runs(self, places: Places, length: int) -> Numbers:
        """The numbers of the runs of `length` tokens from each place on; `nameless` where there are fewer."""
        padded = self._padded(self.numbers) if length == 1 else self._longer[length - 2]
        return padded.take(places + 1, mode="clip")

    @cached_property
    def _longer(self) -> list[Numbers]:
        """Runs of 2 to LONGEST_RUN tokens, padded."""
        runs = [self.numbers]
        for length in range(2, LONGEST_RUN + 1):
            runs.append(runs[-1][:-1] * self.factors[length - 1 :] + self.numbers[length - 1 :])
        return list(map(self._padded, runs[1:]))

    def _padded(self, runs: Numbers) -> Numbers:
        """Runs with a nameless number on either side, which stands for all that are beyond."""
        padded = np.full(len(runs) + 2, self.nameless, np.uint64)
        padded[1:-1] = runs
        return padded


def token_strings(encoding: Encoding, tokenizer: Tokenizer, nameless: int) -> TokenStrings:
    """The strings of an encoding's tokens: their bytes in the vocabulary, or their role.

    nameless is the number of tokens that are equal to none: padding, and ids without bytes, such as unknown ones.
    """
    numbers, factors = _vocabulary(tokenizer)
    own, factor = numbers[encoding.ids], factors[encoding.ids]
    own[own == 0] = nameless
    if encoding.roles is not None:
        special = encoding.roles.nonzero()[0]
        roles = encoding.roles[special]
        own[special] = np.where(roles == _PAD, nameless, roles * _ROLE)
        factor[special] = _ROLE
    return TokenStrings(own, factor, nameless)


def has_equal_near(tokens: Places, own: TokenStrings, partners: Places, other: TokenStrings, near: int) -> Flags:
    """[k] which tokens have an equal among the `near` tokens of the other side before and after a place there.

    tokens [k] places on their own side; partners [k] places on the other. A token has an equal if one token there is
    equal to it, or to a run that it is part of.
    """
    neighbours = other.runs(_around(partners, near), 1)
    found = np.zeros(len(tokens), np.bool_)
    for length in range(1, LONGEST_RUN + 1):
        for offset in range(length):
            found |= (neighbours == own.runs(tokens - offset, length)).any(axis=0)
    return found


def equals_run_near(tokens: Places, own: TokenStrings, partners: Places, other: TokenStrings, near: int) -> Flags:
    """[k] which tokens are equal to a run of several tokens that begins there; see `has_equal_near`."""
    values, around = own.runs(tokens, 1), _around(partners, near)
    found = np.zeros(len(tokens), np.bool_)
    for length in range(2, LONGEST_RUN + 1):
        found |= (other.runs(around, length) == values).any(axis=0)
    return found


def _around(places: Places, near: int) -> Places:
    """[2 * near, k] the places before and from each one on."""
    return places + np.arange(-near, near)[:, None]


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> tuple[Numbers, Numbers]:
    """[vocab_size] the number of each id, 0 for those without bytes, and what a number is multiplied by when the id
    follows: a polynomial in _BASE over the bytes, modulo 2^64."""
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
    return numbers, factors
