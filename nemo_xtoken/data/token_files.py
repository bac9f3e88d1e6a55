"""Megatron's indexed datasets of student tokens as a source: text again for the teacher, tokens kept as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.data.indexed import IndexedReader
from nemo_xtoken.data.reading import BadDocument, Fields, Scan, Slice, SourceDocument, cut_units, hash_file
from nemo_xtoken.errors import DataError
from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.types import Encoding, role_code

PROBE = "A1 é\n  b"


class TokenIndex:
    """The `.idx` beside a `.bin`: hashed as a source of its own, read with the tokens."""

    has_keys = False

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """No slices; see `SourceFormat.scan`."""
        return Scan(hash_file(path), [])

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """Nothing; see `SourceFormat.read`."""
        yield from ()


class TokenFile:
    """The `.bin` of an indexed dataset. It is cut between documents."""

    has_keys = False

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """See `SourceFormat.scan`."""
        reader = _open(path)
        ends = np.concatenate([[0], np.cumsum(reader.lengths, dtype=np.int64)])[reader.documents]
        sizes = np.diff(ends) * reader.dtype.itemsize
        return Scan(hash_file(path), cut_units(path, sizes, np.ones_like(sizes), slice_bytes))

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """A document, of one or more sequences, with its tokens; see `SourceFormat.read`."""
        reader, detokenizer = _open(part.path), Detokenizer(fields.student)
        for i in range(part.start, part.stop):
            place = f"{part.path} document {i + 1}"
            sequences = range(int(reader.documents[i]), int(reader.documents[i + 1]))
            ids = np.concatenate([np.empty(0, reader.dtype), *(reader[sequence] for sequence in sequences)])
            file_bytes = ids.nbytes
            try:
                text, student = detokenizer.text(ids, place)
                yield SourceDocument(text, place, file_bytes, student=student)
            except DataError as error:
                yield BadDocument(str(error), file_bytes)


class Detokenizer:
    """Ids to the text that they stand for, and the span of each. Raises DataError for a tokenizer that changes text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._spec = tokenizer.spec
        probed = b"".join(map(tokenizer.token_bytes, tokenizer.encode(PROBE).ids.tolist()))
        if probed.removeprefix(b" ") != PROBE.encode():
            raise DataError(f"{tokenizer.spec} changes text, so its tokens cannot be made text again; prepare the text")
        self._adds_space = probed.startswith(b" ")
        self._bytes = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self._lengths = np.array([len(content) for content in self._bytes], np.int64)
        self._roles = np.zeros(len(self._bytes), np.uint32)
        for token_id, role in tokenizer.special_roles.items():
            self._roles[token_id] = role_code(role)
        self._bos_id, self._eos_id = role_id(tokenizer, "bos"), role_id(tokenizer, "eos")

    def text(self, ids: NDArray[Any], place: str) -> tuple[str, Encoding]:
        """Text and encoding of ids [n], both without a bos in front and an eos at the end.

        A space that the tokenizer puts in front of every text is no part of it. Raises DataError with the place for
        an id that the tokenizer does not have, and for tokens that are not UTF-8.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self._bytes):
            raise DataError(
                f"{place} has ids from {ids.min()} to {ids.max()}, {self._spec} has {len(self._bytes)}; "
                "these are another tokenizer's tokens"
            )
        ids = self._without_edges(ids).astype(np.int32)
        content = b"".join(map(self._bytes.__getitem__, ids.tolist()))
        ends = np.cumsum(self._lengths[ids])
        if self._adds_space and content.startswith(b" "):
            content, ends = content[1:], np.maximum(ends - 1, 0)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: its tokens are not UTF-8 at byte {error.start} ({error.reason})") from error
        return text, Encoding(ids, np.concatenate([[0], ends[:-1]])[: len(ids)], ends, self._roles[ids])

    def _without_edges(self, ids: NDArray[Any]) -> NDArray[Any]:
        first = int(len(ids) > 0 and self._bos_id is not None and ids[0] == self._bos_id)
        last = len(ids) - int(len(ids) > first and self._eos_id is not None and ids[-1] == self._eos_id)
        return ids[first:last]


def _open(path: Path) -> IndexedReader:
    reader = IndexedReader(path.with_suffix(""))
    if reader.dtype.kind not in "iu":
        raise DataError(f"{path} holds {reader.dtype} numbers; expected the ids of tokens")
    return reader
