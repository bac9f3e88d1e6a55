"""Strings of tokens as numbers, so that runs of tokens can be compared without putting their strings together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers import Tokenizer
from nemo_xtoken.types import Encoding, role_code

Numbers = NDArray[np.uint64]
Remainders = NDArray[np.uint16]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

LONGEST_RUN = 4
"""Tokens of one side that may stand for one token of the other."""

# A number holds the length of its string in its last 16 bits, and before these a polynomial in _BASE over the string's
# bytes, modulo 2^48. Roles have no length. The number of a run has the polynomial alone.
_LENGTH = np.uint64((1 << 16) - 1)
_BITS = np.uint64(16)

_RANDOM = np.random.default_rng(20260).integers(1, 1 << 63, 260, np.uint64)
_BYTES, (_BASE, _ROLE) = _RANDOM[:256], _RANDOM[256:258] * 2 + 1
_NAMELESS = (_RANDOM[258:] << _BITS) + np.uint64(1)
"""Numbers of a student's and a teacher's token that is equal to none on the other side."""

_POWERS: Numbers = np.concatenate([[np.uint64(1)], np.full(int(_LENGTH), _BASE).cumprod(dtype=np.uint64)])
_POWERS_REMAINDERS = _POWERS.astype(np.uint16)
"""What the polynomial of a run is multiplied by when a string of each length follows."""

_PAD = role_code("pad")

_NO_STRING = np.uint64(0)
_BEFORE = np.arange(-LONGEST_RUN, 0)[:, None]
"""From the end of a run to its tokens."""


@dataclass(frozen=True)
class TokenStrings:
    """The strings of the tokens of both sides.

    numbers    [p + 1] uint64, of each token, the student's first, and of one that is nameless. Those of unequal
               strings are equal but once in 2^48
    begins     [2] where the student's and where the teacher's first token is
    """

    numbers: Numbers
    begins: Places

    def at(self, places: Places) -> Numbers:
        """Numbers of the tokens at places, the student's first; nameless after the last."""
        return self.numbers.take(places, mode="clip")

    def runs(self, starts: Places, count: int, inside: tuple[Places, Places] | None = None) -> Numbers:
        """[LONGEST_RUN, count, 2, m] the numbers of the runs of each length from each of count places on, from starts
        [2, m] of the student's and the teacher's tokens on. Those of unequal strings are equal but once in 2^48.

        inside   first and last (exclusive) places, [2, m] each; runs that are not between them are equal to none
        """
        numbers, lengths = self._from(starts, count, inside)
        return _runs(numbers & ~_LENGTH, _POWERS.take(lengths))

    def remainders(self, starts: Places, count: int, inside: tuple[Places, Places]) -> Remainders:
        """`runs` modulo 2^16: what differs in these is not equal."""
        numbers, lengths = self._from(starts, count, inside)
        return _runs((numbers >> _BITS).astype(np.uint16), _POWERS_REMAINDERS.take(lengths))

    def is_run(self, ends: Places, counts: Places) -> Flags:
        """[m] whether one token of one side is equal to a run of the other's: counts [2, m] tokens before ends [2, m].
        Undefined where neither side has one token, or one has more than LONGEST_RUN.
        """
        of_student: Flags = counts[0] > counts[1]
        student, teacher = ends + self.begins[:, None]
        run_end = cast("Places", np.where(of_student, student, teacher))
        single: Places = student + teacher - run_end - 1
        is_in_run: Flags = np.maximum(*counts) >= -_BEFORE
        numbers = cast("Numbers", np.where(is_in_run, self.at(run_end + _BEFORE), _NO_STRING))
        factors = _POWERS.take((numbers & _LENGTH).view(np.int64))
        numbers &= ~_LENGTH
        run = numbers[0]
        for number, factor in zip(numbers[1:], factors[1:], strict=True):
            run *= factor
            run += number
        return run == self.at(single) & ~_LENGTH

    def _from(self, starts: Places, count: int, inside: tuple[Places, Places] | None) -> tuple[Numbers, Places]:
        """[count + LONGEST_RUN - 1, 2, m] the numbers of the tokens that are in the runs from each place on, and the
        lengths of their strings."""
        steps = np.arange(count + LONGEST_RUN - 1)[:, None, None]
        numbers = self.at(steps + (starts + self.begins[:, None]))
        if inside is not None:
            first, last = inside
            is_inside: Flags = (steps >= first - starts) & (steps < last - starts)
            numbers = cast("Numbers", np.where(is_inside, numbers, _NAMELESS[:, None]))
        return numbers, (numbers & _LENGTH).view(np.int64)


def _runs(numbers: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """[LONGEST_RUN, c - LONGEST_RUN + 1, ...] the polynomials of runs from those of their tokens [c, ...]."""
    count = len(numbers) - LONGEST_RUN + 1
    runs = np.empty((LONGEST_RUN, count, *numbers.shape[1:]), numbers.dtype)
    runs[0] = numbers[:count]
    for place in range(1, LONGEST_RUN):
        np.multiply(runs[place - 1], factors[place : place + count], out=runs[place])
        runs[place] += numbers[place : place + count]
    return runs


def token_strings(encodings: tuple[Encoding, Encoding], tokenizers: tuple[Tokenizer, Tokenizer]) -> TokenStrings:
    """The strings of a student's and a teacher's tokens: their bytes in the vocabulary, or their role."""
    sides = [
        _vocabulary(tokenizer, nameless).take(encoding.ids)
        for encoding, tokenizer, nameless in zip(encodings, tokenizers, _NAMELESS, strict=True)
    ]
    for numbers, encoding, nameless in zip(sides, encodings, _NAMELESS, strict=True):
        if encoding.roles is not None:
            special = encoding.roles.nonzero()[0]
            roles = encoding.roles[special]
            numbers[special] = np.where(roles == _PAD, nameless, roles * _ROLE << _BITS)
    return TokenStrings(np.concatenate([*sides, _NAMELESS[:1]]), np.array([0, len(encodings[0])]))


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer, nameless: np.uint64) -> Numbers:
    """[vocab_size] the number of each id; ids without bytes are nameless."""
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    values = _BYTES[np.frombuffer(b"".join(pieces), np.uint8)]
    starts = lengths.cumsum() - lengths
    polynomials = np.zeros(len(pieces), np.uint64)
    for place in range(int(lengths.max(initial=0))):
        longer = (lengths > place).nonzero()[0]
        polynomials[longer] = polynomials[longer] * _BASE + values[starts[longer] + place]
    numbers = (polynomials << _BITS) + np.minimum(lengths, int(_LENGTH)).astype(np.uint64)
    return np.where(lengths == 0, nameless, numbers)
