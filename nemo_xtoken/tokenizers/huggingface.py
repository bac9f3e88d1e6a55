"""Hugging Face's `tokenizer.json`, encoded by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as Library

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.tokenizers.base import VocabularyTokenizer
from nemo_xtoken.tokenizers.characters import CharacterMap
from nemo_xtoken.tokenizers.huggingface_pieces import (
    SPACE,
    dropped_bytes,
    from_byte_characters,
    has_nfc,
    keeps_characters,
    piece_bytes,
    piece_kind,
    special_names,
    special_roles,
    unknown_extent,
    unknown_piece,
)
from nemo_xtoken.tokenizers.normalize import NormalizedTexts, joins, nfc_texts, unchanged_texts
from nemo_xtoken.tokenizers.offsets import from_char_offsets
from nemo_xtoken.tokenizers.seen_texts import View, encodings_by_bytes
from nemo_xtoken.tokenizers.specials import without_specials_in_text
from nemo_xtoken.tokenizers.token_batch import token_batch
from nemo_xtoken.tokenizers.unknown import UnknownTokens
from nemo_xtoken.tokenizers.vocabulary import Vocabulary
from nemo_xtoken.tokenizers.white_space import WhiteSpaceView, spaced_view
from nemo_xtoken.types import Encoding

Normalize = Callable[[Sequence[str]], NormalizedTexts]

_KEPT = (WhiteSpaceView(), WhiteSpaceView(front="always"))


class HuggingFaceTokenizer(VocabularyTokenizer):
    """A tokenizer of any model that the tokenizers library knows.

    Where the bytes of the tokens make up the text, spans are exact sums of their lengths. Where they don't, because the
    tokenizer changed the text, spans come from the library's character offsets.
    """

    def __init__(self, spec: str, path: Path, config: Mapping[str, Any] | None) -> None:
        description = _read_object(path)
        self._library, vocab = _library(path, description, config)
        self._kind = piece_kind(description)
        keeps_bytes = self._kind == "byte_level" or bool(description["model"].get("byte_fallback"))
        roles = special_roles(description, config, vocab)
        self._names = {token_id: name for name, token_id in vocab.items() if token_id in roles}
        pieces = piece_bytes(description, vocab, set(roles))
        super().__init__(spec, Vocabulary(pieces, roles, _rules(description)))
        unknown = None if keeps_bytes else self._unknown(description, vocab)
        self._composes = "\u00e9" in self._normalized("e\u0301")
        self._adds_space = len("".join(self._words("a"))) > len(self._normalized("a"))
        self._views, self._normalize = self._guesses(description, keeps_bytes, unknown)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, on the library's threads."""
        normalized = self._normalize(texts)
        # The fast way leaves out the offsets.
        batch = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        tokens = token_batch(self._vocabulary, [each.ids for each in batch])
        found = encodings_by_bytes(tokens, normalized.contents, self._views)
        return [
            self._by_offsets(texts[number]) if encoding is None else encoding
            for number, encoding in enumerate(normalized.in_original(found))
        ]

    def _by_offsets(self, text: str) -> Encoding:
        """Tokens by the library's character offsets."""
        encoding = self._library.encode(text, add_special_tokens=False)
        return from_char_offsets(encoding.ids, encoding.offsets, text, self._stands_for)

    def _stands_for(self, ids: Sequence[int], part: str) -> bool | None:
        """Whether the normaliser makes the bytes of tokens of a part of a text, of which white space counts only where
        tokens keep every byte. None for unknown tokens."""
        pieces = [self._vocabulary.token_bytes(token_id) for token_id in ids]
        if not all(pieces):
            # The offsets credit what is composed to the first of its characters.
            return False if self._composes and part and joins(part[0]) else None
        content = b"".join(pieces)
        if content == part.encode():
            return True
        seen = self._normalized(part)
        if self._kind != "byte_level":
            return _solid(seen.replace(SPACE, " ")) == _solid(content.decode(errors="surrogateescape"))
        writes_bytes = self._normalized(" ") not in (" ", "")
        seen_bytes = from_byte_characters(seen) if writes_bytes else seen.encode()
        return content == seen_bytes or (self._adds_space and content == b" " + seen_bytes)

    def _unknown(self, description: Mapping[str, Any], vocab: Mapping[str, int]) -> UnknownTokens | None:
        piece, extent = unknown_piece(description["model"]), unknown_extent(description)
        if piece is None or piece not in vocab or extent is None:
            return None
        return UnknownTokens(vocab[piece], extent, self._vocabulary.pieces, self._words)

    def _guesses(
        self, description: Mapping[str, Any], keeps_bytes: bool, unknown: UnknownTokens | None
    ) -> tuple[Sequence[View], Normalize]:
        """How texts may be seen, the likeliest way first, and what the normaliser may make of them."""
        if keeps_bytes:
            views = self._views_of_bytes(description)
            if keeps_characters(description):
                return views, unchanged_texts
        else:
            views = self._views_without_bytes(unknown)
        if has_nfc(description):
            return views, nfc_texts
        blanks = b"" if keeps_bytes else views[0].blanks
        return views, CharacterMap(self._normalized, blanks).normalized_texts

    def _views_of_bytes(self, description: Mapping[str, Any]) -> Sequence[WhiteSpaceView]:
        views = _KEPT if self._normalized("a") == "a" else _KEPT[::-1]
        if self._normalized("A").endswith("a"):
            views = tuple(replace(view, lower=True) for view in views)
        dropped = dropped_bytes(description, self._vocabulary.pieces)
        return (*views, *(replace(view, dropped=dropped) for view in views)) if dropped else views

    def _views_without_bytes(self, unknown: UnknownTokens | None) -> Sequence[WhiteSpaceView]:
        if self._kind == "words":
            return (WhiteSpaceView(runs="dropped", lower=self._normalized("A") == "a", unknown=unknown),)
        likely = spaced_view(lambda text: "".join(self._words(text)), unknown)
        return (likely, *_KEPT, WhiteSpaceView(front="always", runs="single", strips=True))

    def _words(self, text: str) -> list[str]:
        """What pieces are looked for in, with spaces for what stands for them."""
        normalized = self._normalized(text)
        splitter = self._library.pre_tokenizer
        words = [normalized] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(normalized)]
        return [word.replace(SPACE, " ") for word in words]

    def _normalized(self, text: str) -> str:
        normalizer = self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without the special ones; invalid UTF-8 becomes U+FFFD."""
        if self._kind == "byte_level":
            return super().decode(ids)
        text_ids = [int(token_id) for token_id in ids if token_id not in self.special_roles]
        return self._library.decode(text_ids, skip_special_tokens=False)

    def _special_name(self, token_id: int) -> str:
        return self._names[token_id]


def _solid(text: str) -> str:
    return "".join(text.split())


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


def _library(
    path: Path, description: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[Library, dict[str, int]]:
    """The library's tokenizer, which reads no special token out of a text, and all its pieces -> id."""
    try:
        names = special_names(description, config).keys()
        changed, renamed = without_specials_in_text(description, names)
        is_same = changed is description
        library = Library.from_file(str(path)) if is_same else Library.from_str(json.dumps(changed))
    except Exception as error:  # the library raises nothing more specific
        raise TokenizerError(
            f"{path}: expected a Hugging Face tokenizer.json, got one that can't be read: {error}"
        ) from None
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    vocab = library.get_vocab(with_added_tokens=True)
    return library, {renamed.get(piece, piece): token_id for piece, token_id in vocab.items()}


def _rules(description: Mapping[str, Any]) -> str:
    # Not the merges: the library's versions write the same ones in different ways.
    parts = [description.get("normalizer"), description.get("pre_tokenizer"), description["model"].get("type")]
    return json.dumps(parts, sort_keys=True)
