"""Which special tokens of two encodings belong together."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.types import Encoding, role_code

_PAD = role_code("pad")


def pair_specials(student: Encoding, teacher: Encoding) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair special tokens of one role at the same byte of the text, in order: [p] places on each side.

    Each student token takes the first teacher token of its kind after the last one taken. Padding is never paired.
    """
    student_places, teacher_places = _specials(student), _specials(teacher)
    student_keys, teacher_keys = _keys(student, student_places), _keys(teacher, teacher_places)
    if student_keys == teacher_keys:
        return student_places, teacher_places
    pairs = np.array(list(_in_order(student_keys, teacher_keys)), np.int64).reshape(-1, 2)
    return student_places[pairs[:, 0]], teacher_places[pairs[:, 1]]


def _specials(encoding: Encoding) -> NDArray[np.int64]:
    if encoding.roles is None:
        return np.zeros(0, np.int64)
    places = encoding.roles.nonzero()[0]
    return places[encoding.roles[places] != _PAD]


def _keys(encoding: Encoding, places: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Byte and role of each special token."""
    if encoding.roles is None:
        return []
    return list(zip(encoding.ends[places].tolist(), encoding.roles[places].tolist(), strict=True))


def _in_order(student_keys: list[tuple[int, int]], teacher_keys: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    waiting: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    for place, key in enumerate(teacher_keys):
        waiting[key].append(place)
    taken = -1
    for place, key in enumerate(student_keys):
        partners = waiting[key]
        while partners and partners[0] <= taken:
            partners.popleft()
        if partners:
            taken = partners.popleft()
            yield place, taken
