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

_MARGIN = LONGEST_RUN
"""Places in front of each side and after the last that hold numbers of their own, which nothing is equal to."""

_PAD = role_code("pad")
_RANDOM = np.random.default_rng(20260).integers(1, 1 << 63, 258 + 3 * _MARGIN, np.uint64)
_BYTES, (_BASE, _ROLE), _BESIDE = _RANDOM[:256], _RANDOM[256:258] * 2 + 1, _RANDOM[258:].reshape(3, _MARGIN)
NAMELESS = (1, 2)
"""Numbers of a student's and a teacher's token that is equal to none on the other side."""


@dataclass(frozen=True)
class TokenStrings:
    """Numbers of the tokens of both sides, the student's first: equal for equal strings, else but once in 2^60.

    numbers   [p] uint64, of each token
    factors   [p] uint64, what the number of the tokens before it is multiplied by in a run
    begins    [2] where the student's and where the teacher's first token is
    """

    numbers: Numbers
    factors: Numbers
    begins: Places

    def __len__(self) -> int:
        return len(self.numbers)

    def whole(self, places: Places, lengths: Places) -> Numbers:
        """The number of the run of so many tokens, 1 to LONGEST_RUN, from each place on."""
        number = self.numbers.take(places)
        for place in range(1, int(lengths.max(initial=0))):
            longer = number * self.factors.take(places + place) + self.numbers.take(places + place)
            number = np.where(lengths > place, longer, number)
        return number

    def runs(self, places: Places) -> Numbers:
        """[LONGEST_RUN, ...] the numbers of the runs of each length from each place on."""
        runs = np.empty((LONGEST_RUN, *places.shape), np.uint64)
        runs[0] = self.numbers.take(places)
        for place in range(1, LONGEST_RUN):
            np.multiply(runs[place - 1], self.factors.take(places + place), out=runs[place])
            runs[place] += self.numbers.take(places + place)
        return runs

    @cached_property
    def remainders(self) -> NDArray[np.uint16]:
        """[LONGEST_RUN, p] the numbers of the runs of each length from each place on modulo 2^16, the last ones
        without those that would end outside: what differs in these is not equal."""
        runs = np.zeros((LONGEST_RUN, len(self)), np.uint16)
        runs[0] = self.numbers
        factors = self.factors.astype(np.uint16)
        for place in range(1, LONGEST_RUN):
            longer = runs[place, :-place]
            np.multiply(runs[place - 1, :-place], factors[place:], out=longer)
            longer += runs[0, place:]
        return runs


def token_strings(encodings: tuple[Encoding, Encoding], tokenizers: tuple[Tokenizer, Tokenizer]) -> TokenStrings:
    """The strings of a student's and a teacher's tokens: their bytes in the vocabulary, or their role."""
    begins = (_MARGIN, 2 * _MARGIN + len(encodings[0]))
    numbers = np.empty(3 * _MARGIN + sum(map(len, encodings)), np.uint64)
    factors = np.full(len(numbers), _ROLE)
    for place, beside in zip((0, begins[1] - _MARGIN, len(numbers) - _MARGIN), _BESIDE, strict=True):
        numbers[place : place + _MARGIN] = beside
    for begin, encoding, tokenizer, nameless in zip(begins, encodings, tokenizers, NAMELESS, strict=True):
        own = slice(begin, begin + len(encoding))
        for values, of_ids in zip((numbers, factors), _vocabulary(tokenizer, nameless), strict=True):
            values[own] = of_ids.take(encoding.ids)
        if encoding.roles is not None:
            special = encoding.roles.nonzero()[0]
            roles = encoding.roles[special]
            numbers[begin + special] = np.where(roles == _PAD, nameless, roles * _ROLE)
            factors[begin + special] = _ROLE
    return TokenStrings(numbers, factors, np.array(begins))


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
