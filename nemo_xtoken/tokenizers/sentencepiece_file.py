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
from nemo_xtoken.tokenizers.characters import CharacterMap
from nemo_xtoken.tokenizers.huggingface_pieces import SPACE
from nemo_xtoken.tokenizers.normalize import from_offsets
from nemo_xtoken.tokenizers.seen_texts import encodings_by_bytes
from nemo_xtoken.tokenizers.spans import encode_utf8
from nemo_xtoken.tokenizers.threads import thread_count
from nemo_xtoken.tokenizers.token_batch import Ids, token_batch
from nemo_xtoken.tokenizers.unknown import UnknownTokens
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.tokenizers.white_space import spaced_view
from nemo_xtoken.types import Encoding

_HAS_NUMPY = hasattr(SentencePieceProcessor, "EncodeAsNumpy")
"""Whether the library hands out ids without making a list of them; older ones don't."""


class SentencePieceTokenizer(VocabularyTokenizer):
    """A SentencePiece model of any type, with or without byte fallback, dummy prefix and normaliser."""

    def __init__(self, spec: str, model: bytes) -> None:
        library = SentencePieceProcessor()
        library.LoadFromSerializedProto(model)
        self._library = library
        self._prefixes = self._see("a").startswith(" ")
        pieces = _pieces(library)
        super().__init__(spec, Vocabulary(pieces, _roles(library), hashlib.sha256(model).hexdigest()))
        unknown = UnknownTokens(library.unk_id(), "run", pieces, lambda text: [self._see(text)])
        self._view = spaced_view(self._see, unknown)
        self._normalize = CharacterMap(self._see, self._view.blanks).normalized_texts

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, on the library's threads."""
        normalized = self._normalize(texts)
        tokens = token_batch(self._vocabulary, self._library_batch(list(texts)))
        found = encodings_by_bytes(tokens, normalized.contents, (self._view,))
        return [
            self._by_offsets(*tokens.of_text(number), texts[number]) if encoding is None else encoding
            for number, encoding in enumerate(normalized.in_original(found))
        ]

    def _see(self, text: str) -> str:
        return str(self._library.Normalize(text)).replace(SPACE, " ")

    def _library_batch(self, texts: list[str]) -> Sequence[Sequence[int] | Ids]:
        out_type = "numpy" if _HAS_NUMPY else int
        return self._library.Encode(texts, out_type=out_type, num_threads=thread_count(len(texts)))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without the space that encoding put in front."""
        text_ids = [int(token_id) for token_id in ids if self._vocabulary.token_bytes(token_id)]
        return str(self._library.Decode(text_ids))

    def _special_name(self, token_id: int) -> str:
        return str(self._library.IdToPiece(token_id))

    def _by_offsets(self, ids: NDArray[np.int32], lengths: NDArray[np.int64], text: str) -> Encoding:
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
