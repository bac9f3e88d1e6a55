"""Strings of tokens as numbers, so that runs of tokens can be compared without putting their strings together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding, role_code

Symbols = NDArray[np.int32]
Numbers = NDArray[np.uint64]
Remainders = NDArray[np.uint16]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

LONGEST_RUN = 4
"""Tokens of one side that may stand for one token of the other."""

MARGIN = LONGEST_RUN
"""Places in front of each side and after the last that have symbols of their own, which nothing is equal to."""

NAMELESS = (0, 1)
"""Symbols of a student's and a teacher's token that is equal to none on the other side."""

_BESIDE = np.arange(2, 2 + 3 * MARGIN, dtype=np.int32).reshape(3, MARGIN)
_NUM_RESERVED = 2 + 3 * MARGIN
_PAD = role_code("pad")
_RANDOM = np.random.default_rng(20260).integers(1, 1 << 63, 258 + _NUM_RESERVED, np.uint64)
_BYTES, (_BASE, _ROLE), _RESERVED = _RANDOM[:256], _RANDOM[256:258] * 2 + 1, _RANDOM[258:]


@dataclass(frozen=True)
class Vocabularies:
    """The strings of two vocabularies.

    symbols   ([V_S], [V_T]) int32 of each id: equal for equal strings, and for those only
    numbers   [symbols] uint64: a polynomial in _BASE over the string's bytes, modulo 2^64
    factors   [symbols] uint64: what the number of a string is multiplied by when this one follows
    """

    symbols: tuple[Symbols, Symbols]
    numbers: Numbers
    factors: Numbers

    @functools.cached_property
    def remainders(self) -> tuple[Remainders, Remainders]:
        """`numbers` and `factors` modulo 2^16: what differs in these is not equal."""
        return self.numbers.astype(np.uint16), self.factors.astype(np.uint16)


@dataclass(frozen=True)
class TokenStrings:
    """The strings of the tokens of both sides.

    symbols    [p] int32, of each token, the student's first; negative for roles. Equal for equal strings, and for
               those only
    begins     [2] where the student's and where the teacher's first token is
    has_roles  whether there are special tokens
    """

    symbols: Symbols
    begins: Places
    has_roles: bool
    vocabularies: Vocabularies

    def side(self, side: int) -> Symbols:
        """Symbols of the tokens of one side, and what follows them."""
        return self.symbols[self.begins[side] :]

    def numbers(self, symbols: Symbols) -> Numbers:
        """Numbers of symbols; those of unequal strings are equal but once in 2^60."""
        numbers = self.vocabularies.numbers.take(symbols, mode="clip")
        self._set_roles(symbols, numbers)
        return numbers

    def factors(self, symbols: Symbols) -> Numbers:
        """What the number of a run is multiplied by when the symbol follows."""
        return self.vocabularies.factors.take(symbols, mode="clip")

    def runs_from(self, side: int, places: Places, lengths: Places) -> Numbers:
        """[m] the number of the run of so many tokens, 1 to LONGEST_RUN, from each place [m] of a side on."""
        symbols = self.side(side)
        runs = self.numbers(symbols.take(places))
        longer = np.arange(len(places))
        for place in range(1, int(lengths.max(initial=0))):
            if place > 1:
                longer = longer[lengths.take(longer) > place]
            following = symbols.take(places.take(longer) + place)
            runs[longer] = runs.take(longer) * self.factors(following) + self.numbers(following)
        return runs

    def runs_to(self, side: int, starts: Places, sizes: Places) -> Numbers:
        """[LONGEST_RUN, most tokens, m] the numbers of the runs of each length that end with each token of the windows
        from starts [m] on; those of a nameless token for runs that are not inside."""
        steps = np.arange(int(sizes.max()))[:, None]
        symbols = self.side(side).take(starts + steps, mode="clip")
        symbols[steps >= sizes] = NAMELESS[side]
        runs = np.full((LONGEST_RUN, *symbols.shape), _RESERVED[NAMELESS[side]])
        runs[0] = self.numbers(symbols)
        factors = self.factors(symbols)
        for place in range(1, min(LONGEST_RUN, len(symbols))):
            runs[place, place:] = runs[place - 1, place - 1 : -1] * factors[place:] + runs[0, place:]
        return runs

    def remainders(self, starts: Places, count: int) -> Remainders:
        """[LONGEST_RUN, count, 2, m] the numbers modulo 2^16 of the runs of each length from each of count places on,
        from starts [2, m] of the student's and the teacher's tokens on; -MARGIN is the first place."""
        places = starts + self.begins[:, None] + np.arange(count + LONGEST_RUN - 1)[:, None, None]
        symbols = self.symbols.take(places, mode="clip")
        numbers, factors = (table.take(symbols, mode="clip") for table in self.vocabularies.remainders)
        self._set_roles(symbols, numbers)
        runs = np.empty((LONGEST_RUN, count, *starts.shape), np.uint16)
        runs[0] = numbers[:count]
        for place in range(1, LONGEST_RUN):
            np.multiply(runs[place - 1], factors[place : place + count], out=runs[place])
            runs[place] += numbers[place : place + count]
        return runs

    def _set_roles(self, symbols: Symbols, numbers: NDArray[Any]) -> None:
        """Sets the numbers of roles, which no string is likely to have."""
        if self.has_roles:
            roles = (symbols < 0).nonzero()
            numbers[roles] = (symbols[roles].astype(np.uint64) * _ROLE).astype(numbers.dtype)


def token_strings(encodings: tuple[Encoding, Encoding], tokenizers: tuple[Tokenizer, Tokenizer]) -> TokenStrings:
    """The strings of a student's and a teacher's tokens: their bytes in the vocabulary, or their role."""
    vocabularies = _vocabularies(*tokenizers)
    begins = (MARGIN, 2 * MARGIN + len(encodings[0]))
    symbols = np.empty(3 * MARGIN + sum(map(len, encodings)), np.int32)
    for place, beside in zip((0, begins[1] - MARGIN, len(symbols) - MARGIN), _BESIDE, strict=True):
        symbols[place : place + MARGIN] = beside
    for begin, encoding, of_ids, nameless in zip(begins, encodings, vocabularies.symbols, NAMELESS, strict=True):
        symbols[begin : begin + len(encoding)] = of_ids.take(encoding.ids)
        if encoding.roles is not None:
            special = encoding.roles.nonzero()[0]
            roles = encoding.roles[special]
            symbols[begin + special] = np.where(roles == _PAD, nameless, (roles | (1 << 31)).view(np.int32))
    has_roles = any(encoding.roles is not None for encoding in encodings)
    return TokenStrings(symbols, np.array(begins), has_roles, vocabularies)


@functools.lru_cache(maxsize=4)
def _vocabularies(student: Tokenizer, teacher: Tokenizer) -> Vocabularies:
    strings: dict[bytes, int] = {}
    symbols: list[Symbols] = []
    for tokenizer, nameless in zip((student, teacher), NAMELESS, strict=True):
        pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
        own = [strings.setdefault(piece, _NUM_RESERVED + len(strings)) if piece else nameless for piece in pieces]
        symbols.append(np.array(own, np.int32))
    numbers, factors = _polynomials(list(strings))
    numbers = np.concatenate([_RESERVED, numbers])
    factors = np.concatenate([np.full(_NUM_RESERVED, _ROLE), factors])
    return Vocabularies((symbols[0], symbols[1]), numbers, factors)


def _polynomials(pieces: list[bytes]) -> tuple[Numbers, Numbers]:
    """The number of each string, none of them empty, and what a number is multiplied by when the string follows."""
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    values = _BYTES[np.frombuffer(b"".join(pieces), np.uint8)]
    starts = lengths.cumsum() - lengths
    numbers = np.zeros(len(pieces), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        longer = (lengths > place).nonzero()[0]
        numbers[longer] = numbers[longer] * _BASE + values[starts[longer] + place]
    powers = np.full(int(lengths.max(initial=0)) + 1, _BASE).cumprod(dtype=np.uint64)
    return numbers, powers[lengths - 1]
