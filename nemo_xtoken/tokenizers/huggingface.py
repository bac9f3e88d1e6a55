"""Hugging Face's `tokenizer.json`, encoded by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as Library

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.tokenizers.base import VocabularyTokenizer
from nemo_xtoken.tokenizers.characters import CharacterMap
from nemo_xtoken.tokenizers.huggingface_pieces import Kind, has_nfc, piece_bytes, piece_kind, special_roles
from nemo_xtoken.tokenizers.normalize import Normalized, nfc, unchanged
from nemo_xtoken.tokenizers.spans import encode_utf8, from_char_offsets
from nemo_xtoken.tokenizers.token_batch import View, after_a_space, as_they_are, encodings_by_bytes, token_batch
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.tokenizers.white_space import lower_words, single_spaced_after_a_space, words
from nemo_xtoken.types import Encoding


class HuggingFaceTokenizer(VocabularyTokenizer):
    """A tokenizer of any model that the tokenizers library knows.

    Where the bytes of the tokens make up the text, spans are exact sums of their lengths. Where they don't, because the
    tokenizer changed the text, spans come from the library's character offsets.
    """

    def __init__(self, spec: str, path: Path, config: Mapping[str, Any] | None) -> None:
        description = _read_object(path)
        self._library = _library(path)
        self._kind = piece_kind(description)
        self._keeps_bytes = self._kind == "byte_level" or bool(description["model"].get("byte_fallback"))
        self._views = _views(self._kind, self._keeps_bytes, lower=self._normalized("A") == "a")
        self._normalize = nfc if has_nfc(description) else self._without_nfc()
        vocab = self._library.get_vocab(with_added_tokens=True)
        roles = special_roles(description, config, vocab)
        super().__init__(spec, Vocabulary(piece_bytes(description, vocab, set(roles)), roles, _rules(description)))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, on the library's threads."""
        normalized = [self._normalize(text) for text in texts]
        # The fast way leaves out the offsets.
        batch = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        tokens = token_batch(self._vocabulary, [each.ids for each in batch])
        found = encodings_by_bytes(tokens, [encode_utf8(each.text) for each in normalized], self._views)
        return [
            self._by_offsets(text) if encoding is None else each.in_original(encoding)
            for text, each, encoding in zip(texts, normalized, found, strict=True)
        ]

    def _by_offsets(self, text: str) -> Encoding:
        """Tokens by the library's character offsets."""
        encoding = self._library.encode(text, add_special_tokens=False)
        return from_char_offsets(encoding.ids, encoding.offsets, text)

    def _without_nfc(self) -> Callable[[str], Normalized]:
        """A guess at what the normaliser makes of a text; tokens that keep every byte see the text itself."""
        return unchanged if self._keeps_bytes else CharacterMap(self._normalized).normalized

    def _normalized(self, text: str) -> str:
        normalizer = self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without the special ones; invalid UTF-8 becomes U+FFFD."""
        if self._kind == "byte_level":
            return super().decode(ids)
        text_ids = [int(token_id) for token_id in ids if token_id not in self.special_roles]
        return self._library.decode(text_ids, skip_special_tokens=False)


def _views(kind: Kind, keeps_bytes: bool, lower: bool) -> Sequence[View]:
    if kind == "words":
        return (lower_words if lower else words,)
    return (as_they_are, after_a_space) if keeps_bytes else (as_they_are, after_a_space, single_spaced_after_a_space)


def load_huggingface(spec: str, path: Path) -> HuggingFaceTokenizer:
    """Load a `tokenizer.json` and the config beside it. Raises TokenizerError where it is none."""
    configs = (path.with_name(name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    config = next((_read_object(each) for each in configs if each.is_file()), None)
    return HuggingFaceTokenizer(spec, path, config)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: expected JSON, got a file that is none ({error})") from None
    if not isinstance(parsed, dict):
        raise TokenizerError(f"{path}: expected a JSON object, got a {type(parsed).__name__}")
    return cast("dict[str, Any]", parsed)


def _library(path: Path) -> Library:
    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(
            f"{path}: expected a Hugging Face tokenizer.json, got one that can't be read: {error}"
        ) from None
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    return library


def _rules(description: Mapping[str, Any]) -> str:
    # Not the merges: the library's versions write the same ones in different ways.
    parts = [description.get("normalizer"), description.get("pre_tokenizer"), description["model"].get("type")]
    return json.dumps(parts, sort_keys=True)
