"""Texts of which a tokenizer changes nothing but white space, and perhaps case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.token_batch import SeenTexts, sizes_of, sums

_BLANKS = b"\t\n\r "
_SPACE = 0x20
_SPACED = bytes.maketrans(_BLANKS, b" " * len(_BLANKS))


def single_spaced_after_a_space(texts: Sequence[bytes]) -> SeenTexts:
    """Texts without white space at their ends, with one space for each run of it, and one in front."""
    return _single_spaced(texts, space_in_front=True)


def single_spaced(texts: Sequence[bytes]) -> SeenTexts:
    """Texts without white space at their ends, and with one space for each run of it."""
    return _single_spaced(texts, space_in_front=False)


def _single_spaced(texts: Sequence[bytes], *, space_in_front: bool) -> SeenTexts:
    parts = [text.rstrip(_BLANKS) for text in texts]
    # The line feed in front of a text and the white space at its beginning are one run.
    source = b"\n".join([b"", *parts])
    seen = np.frombuffer(source.translate(_SPACED), np.uint8)
    keep = seen != _SPACE
    keep[1:] |= keep[:-1]
    keep[sums(sizes_of(parts) + 1)[:-1]] = space_in_front
    return _kept(keep, seen, source, parts, texts)


def words(texts: Sequence[bytes]) -> SeenTexts:
    """Texts without their white space."""
    source = b"\n".join([b"", *texts])
    seen = np.frombuffer(source.translate(_SPACED), np.uint8)
    return _kept(seen != _SPACE, seen, source, texts, texts)


def lower_words(texts: Sequence[bytes]) -> SeenTexts:
    """Texts in lower case (ASCII) without their white space."""
    return words([text.lower() for text in texts])


def _kept(
    keep: NDArray[np.bool_],
    seen: NDArray[np.uint8],
    source: bytes,
    parts: Sequence[bytes],
    texts: Sequence[bytes],
) -> SeenTexts:
    """What is kept of the parts of the texts that source is made of, with a line feed in front of each."""
    places = keep.nonzero()[0]
    starts = sums(sizes_of(parts) + 1)
    begins = np.searchsorted(places, starts)
    return SeenTexts(np.compress(keep, seen).tobytes(), begins, source, starts[:-1] + 1, sizes_of(texts), places)
