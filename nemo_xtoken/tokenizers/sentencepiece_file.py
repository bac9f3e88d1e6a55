"""SentencePiece models (`.model`, a protobuf), encoded by the sentencepiece library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.tokenizers.base import VocabularyTokenizer
from nemo_xtoken.tokenizers.normalize import from_offsets, unchanged
from nemo_xtoken.tokenizers.spans import encode_utf8
from nemo_xtoken.tokenizers.threads import thread_count
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.tokenizers.white_space import single_spaced
from nemo_xtoken.types import Encoding

SPACE = "\u2581"
"""The character that stands for a space in pieces."""


class SentencePieceTokenizer(VocabularyTokenizer):
    """A SentencePiece model of any type, with or without byte fallback, dummy prefix and normaliser."""

    def __init__(self, spec: str, model: bytes) -> None:
        library = SentencePieceProcessor()
        library.LoadFromSerializedProto(model)
        self._library = library
        self._prefixes = str(library.Normalize("a")).startswith(SPACE)
        super().__init__(spec, Vocabulary(_pieces(library), _roles(library), hashlib.sha256(model).hexdigest()))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, on the library's threads."""
        data = [encode_utf8(text) for text in texts]
        batch = self._library.Encode(list(texts), out_type=int, num_threads=thread_count(len(texts)))
        return list(map(self._tokens, texts, data, batch, self._vocabulary.arrays(batch)))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without the space that encoding put in front."""
        text_ids = [int(token_id) for token_id in ids if self._vocabulary.token_bytes(token_id)]
        return str(self._library.Decode(text_ids))

    def _tokens(
        self, text: str, data: bytes, id_list: list[int], arrays: tuple[NDArray[np.int32], NDArray[np.int64]]
    ) -> Encoding:
        ids, lengths = arrays
        joined = self._vocabulary.joined(id_list)
        if joined == data:
            return unchanged(text).tokens(ids, lengths)
        if joined == b" " + data:
            lengths[0] -= 1
            return unchanged(text).tokens(ids, lengths)
        tokens = single_spaced(data).tokens(ids, lengths, joined)
        return self._normalized_tokens(ids, lengths, text) if tokens is None else tokens

    def _normalized_tokens(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], text: str) -> Encoding:
        """The way for a text that the model's normaliser changes, or with unknown characters."""
        normalized, offsets = self._library.Normalize(text, with_offsets=True)
        unknown = np.isin(ids, self._library.unk_id())
        if unknown.any():
            surfaces = self._library.Encode(text, out_type=str)
            lengths = np.array([len(encode_utf8(surface.replace(SPACE, " "))) for surface in surfaces])
        origin = from_offsets(
            text, str(normalized).replace(SPACE, " "), offsets, int(self._prefixes and bool(normalized))
        )
        return origin.tokens(ids, lengths)


def load_sentencepiece(spec: str, path: Path) -> SentencePieceTokenizer:
    """Load a `.model` file. Raises TokenizerError where it is none."""
    try:
        return SentencePieceTokenizer(spec, path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{path}: expected a SentencePiece model, got a file that is none ({error})") from None


def _pieces(library: SentencePieceProcessor) -> list[bytes]:
    pieces: list[bytes] = []
    for token_id in range(library.GetPieceSize()):
        piece = library.IdToPiece(token_id)
        if library.IsByte(token_id):
            pieces.append(bytes([int(piece[3:5], 16)]))
        elif library.IsControl(token_id) or library.IsUnknown(token_id) or library.IsUnused(token_id):
            pieces.append(b"")
        else:
            pieces.append(piece.replace(SPACE, " ").encode())
    return pieces


def _roles(library: SentencePieceProcessor) -> dict[int, str]:
    ids = range(library.GetPieceSize())
    roles = {token_id: library.IdToPiece(token_id) for token_id in ids if library.IsControl(token_id)}
    named = {"pad": library.pad_id(), "unk": library.unk_id(), "bos": library.bos_id(), "eos": library.eos_id()}
    return roles | {token_id: role for role, token_id in named.items() if token_id >= 0}
