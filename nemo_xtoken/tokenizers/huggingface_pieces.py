"""What a Hugging Face `tokenizer.json` says about its ids: the bytes of each, and the roles of the special ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

SPACE = "\u2581"
"""The character that stands for a space in pieces of the SentencePiece kind."""

Kind = Literal["byte_level", "spaced", "words"]
"""How pieces follow from the text: byte by byte; by character, with U+2581 for a space; words without their spaces."""

Extent = Literal["run", "character", "word"]
"""What becomes one unknown token: a run of unknown characters, each of them, or a word that has any."""

_SPLITS_BY_CHARACTER = {"BertPreTokenizer", "WhitespaceSplit"}
"""Pre-tokenizers that end a word at a character whatever the others are."""

_TYPE = re.compile(r'"type": "(\w+)"')

_ROLE_KEYS = {"eos_token": "eos", "bos_token": "bos", "unk_token": "unk", "pad_token": "pad"}
"""In this order: where one token has several roles, the first counts."""

_WELL_KNOWN = {
    "<s>": "bos",
    "<bos>": "bos",
    "<|begin_of_text|>": "bos",
    "</s>": "eos",
    "<eos>": "eos",
    "<|endoftext|>": "eos",
    "<|end_of_text|>": "eos",
    "<pad>": "pad",
    "[PAD]": "pad",
    "<unk>": "unk",
    "[UNK]": "unk",
}


def piece_kind(description: Mapping[str, Any]) -> Kind:
    """The kind of pieces of a parsed `tokenizer.json`."""
    parts = [description.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    types = {part_type for part in parts for part_type in _types(part)}
    if "ByteLevel" in types:
        return "byte_level"
    if "Metaspace" in types or any(SPACE in str(part) for part in parts):
        return "spaced"
    return "words"


def dropped_bytes(description: Mapping[str, Any], pieces: Sequence[bytes]) -> bytes:
    """Bytes that the tokenizer of a parsed `tokenizer.json` leaves out of a text, having no token for them.

    pieces: [vocab_size] bytes of each id
    """
    if piece_kind(description) != "byte_level" or description["model"].get("unk_token"):
        return b""
    return bytes({*range(256)} - {piece[0] for piece in pieces if len(piece) == 1})


def unknown_extent(description: Mapping[str, Any]) -> Extent | None:
    """What an unknown token of a parsed `tokenizer.json` stands for. None: the file alone doesn't tell."""
    model = description["model"]
    if model["type"] == "Unigram":
        return "run"
    if model["type"] == "BPE" and model.get("fuse_unk"):
        return "run"
    if model["type"] == "BPE":
        # A normaliser may put characters in another order.
        return None if description.get("normalizer") else "character"
    splits = _types(description.get("pre_tokenizer"))
    return "word" if splits and splits <= _SPLITS_BY_CHARACTER else None


_WITHOUT_CHANGES = {"Sequence", "ByteLevel"}
"""Normalisers that change no character, or only how it is written."""


def has_nfc(description: Mapping[str, Any]) -> bool:
    """Whether the only normaliser of a parsed `tokenizer.json` is Unicode's composition."""
    return _types(description.get("normalizer")) - _WITHOUT_CHANGES == {"NFC"}


def keeps_characters(description: Mapping[str, Any]) -> bool:
    """Whether the normaliser of a parsed `tokenizer.json` is of the kinds that mark spaces."""
    return _types(description.get("normalizer")) <= _WITHOUT_CHANGES | {"Prepend", "Replace"}


def _types(part: Any) -> set[str]:
    """Types of a normaliser, pre-tokenizer or decoder and of all it is made of."""
    return set(_TYPE.findall(json.dumps(part)))


def piece_bytes(description: Mapping[str, Any], vocab: Mapping[str, int], specials: set[int]) -> list[bytes]:
    """[highest id + 1] bytes of each id, empty for the special and unused ones. vocab: all pieces -> id."""
    convert = _converter(description)
    # An added token is plain text; of the spaced kind it is text after normalisation, like all the others.
    plain = set[int]() if piece_kind(description) == "spaced" else _added_ids(description)
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for piece, token_id in vocab.items():
        if token_id not in specials:
            pieces[token_id] = piece.encode() if token_id in plain else convert(piece)
    return pieces


def _added_ids(description: Mapping[str, Any]) -> set[int]:
    return {int(token["id"]) for token in description.get("added_tokens", ())}


def _converter(description: Mapping[str, Any]) -> Callable[[str], bytes]:
    model = description["model"]
    kind = piece_kind(description)
    if kind == "byte_level":
        return from_byte_characters
    if kind == "spaced":
        return _from_bytes_or_spaced if model.get("byte_fallback") else _from_spaced
    prefix = str(model.get("continuing_subword_prefix") or "")
    suffix = str(model.get("end_of_word_suffix") or "")
    return lambda piece: piece.removeprefix(prefix).removesuffix(suffix).encode()


def _from_spaced(piece: str) -> bytes:
    return piece.replace(SPACE, " ").encode()


def _from_bytes_or_spaced(piece: str) -> bytes:
    is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
    return bytes([int(piece[3:5], 16)]) if is_byte else _from_spaced(piece)


def _byte_characters() -> dict[int, int]:
    """Character -> byte of GPT-2's printable alphabet: bytes that print stand for themselves, the others follow 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return {value: value for value in printable} | {256 + rank: value for rank, value in enumerate(others)}


_BYTE_OF = _byte_characters()


def from_byte_characters(piece: str) -> bytes:
    """Bytes of a piece in GPT-2's alphabet; one that has other characters is text as it is."""
    if all(ord(char) in _BYTE_OF for char in piece):
        return piece.translate(_BYTE_OF).encode("latin-1")
    return piece.encode()


def special_roles(
    description: Mapping[str, Any], config: Mapping[str, Any] | None, vocab: Mapping[str, int]
) -> dict[int, str]:
    """Role of each special id. config: `tokenizer_config.json`; without one, roles go by well-known names."""
    return {vocab[name]: role for name, role in special_names(description, config).items() if name in vocab}


def special_names(description: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, str]:
    """Role of each special token by its text, whether or not it has an id."""
    names = {str(token["content"]) for token in description.get("added_tokens", ()) if token["special"]}
    roles = dict(_WELL_KNOWN)
    if config is not None:
        roles = _configured(config)
        names |= roles.keys()
    unknown = unknown_piece(description["model"])
    if unknown is not None:
        names.add(unknown)
        roles.setdefault(unknown, "unk")
    return {name: roles.get(name, name) for name in names}


def unknown_piece(model: Mapping[str, Any]) -> str | None:
    """The piece for what is unknown to the model of a parsed `tokenizer.json`."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _configured(config: Mapping[str, Any]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for key, role in _ROLE_KEYS.items():
        entry = config.get(key)
        name = cast("Mapping[str, Any]", entry).get("content") if isinstance(entry, Mapping) else entry
        if isinstance(name, str):
            roles.setdefault(name, role)
    return roles
