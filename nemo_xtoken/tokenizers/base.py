"""What tokenizers of every format have in common: a spec and a vocabulary that answers all but encoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.types import Encoding


class VocabularyTokenizer(ABC):
    """`protocol.Tokenizer` for a vocabulary; a format adds how it encodes."""

    def __init__(self, spec: str, vocabulary: Vocabulary) -> None:
        self._spec = spec
        self._vocabulary = vocabulary

    @property
    def spec(self) -> str:
        """The spec it was loaded from."""
        return self._spec

    @property
    def vocab_size(self) -> int:
        """Highest id plus one, special tokens included."""
        return len(self._vocabulary)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, bytes, special tokens and what else decides the ids of a text."""
        return self._vocabulary.fingerprint

    @property
    def special_roles(self) -> Mapping[int, str]:
        """Role of each special id."""
        return self._vocabulary.special_roles

    def encode(self, text: str) -> Encoding:
        """Tokens and byte spans; see `Tokenizer.encode`."""
        return self.encode_batch([text])[0]

    @property
    def special_names(self) -> Mapping[int, str]:
        """What each special id is called in the tokenizer's own file."""
        return {token_id: self._special_name(token_id) for token_id in self.special_roles}

    @abstractmethod
    def _special_name(self, token_id: int) -> str:
        """What one special id is called."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, for many texts at once."""

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of an id; empty for special and unused ids."""
        return self._vocabulary.token_bytes(token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; invalid UTF-8 becomes U+FFFD."""
        return self._vocabulary.decode(ids)
