"""Strings of tokens as numbers, so that runs of tokens can be compared without putting their strings together."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding, role_code

Numbers = NDArray[np.uint64]
Flags = NDArray[np.bool_]

LONGEST_RUN = 4
"""Tokens of one side that may stand for one token of the other."""

_PAD = role_code("pad")
_RANDOM = np.random.default_rng(20260).integers(1, 1 << 63, 258, np.uint64)
_BYTES, (_BASE, _ROLE) = _RANDOM[:256], _RANDOM[256:] * 2 + 1


@dataclass(frozen=True)
class TokenStrings:
    """Numbers of all runs of up to LONGEST_RUN tokens: equal for equal strings, and for others but once in 2^60.

    runs[k - 1]  [n - k + 1] uint64, of the k tokens from each place on
    """

    runs: tuple[Numbers, ...]

    def __len__(self) -> int:
        return len(self.runs[0])


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
    runs = [own]
    for length in range(2, LONGEST_RUN + 1):
        runs.append(runs[-1][:-1] * factor[length - 1 :] + own[length - 1 :])
    return TokenStrings(tuple(runs))


def has_equal_near(
    tokens: NDArray[np.int64], own: TokenStrings, partners: NDArray[np.int64], other: TokenStrings, near: int
) -> Flags:
    """[k] which tokens have an equal among the `near` tokens of the other side before and after a place there.

    tokens [k] places on their own side; partners [k] places on the other. A token has an equal if one token there is
    equal to it, or to a run that it is part of.
    """
    neighbours = _around(other.runs[0], partners, near)
    found = np.zeros(len(tokens), np.bool_)
    for length, runs in enumerate(own.runs, 1):
        for begins in (tokens - offset for offset in range(length)):
            exists = (begins >= 0) & (begins < len(runs))
            values = runs[begins * exists] if len(runs) else np.zeros(len(tokens), np.uint64)
            found |= exists & (neighbours == values[:, None]).any(axis=1)
    return found


def equals_run_near(
    tokens: NDArray[np.int64], own: TokenStrings, partners: NDArray[np.int64], other: TokenStrings, near: int
) -> Flags:
    """[k] which tokens are equal to a run of several tokens that begins there; see `has_equal_near`."""
    values = own.runs[0][tokens][:, None]
    found = np.zeros(len(tokens), np.bool_)
    for runs in other.runs[1:]:
        found |= (_around(runs, partners, near) == values).any(axis=1)
    return found


def _around(numbers: Numbers, places: NDArray[np.int64], near: int) -> Numbers:
    """[k, 2 * near] the numbers before and from each place on, 0 where there is none."""
    padded = np.zeros(int(places.max(initial=0)) + max(len(numbers), near) + 2 * near, np.uint64)
    padded[near : near + len(numbers)] = numbers
    return padded[places[:, None] + np.arange(2 * near)]


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
