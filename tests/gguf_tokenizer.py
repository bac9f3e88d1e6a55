"""The byte-level BPE of a GGUF model file as a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import json
import struct
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CONTROL = 3


class _Reader:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def scalar(self, code: str) -> Any:
        (number,) = struct.unpack_from(f"<{code}", self._data, self._place)
        self._place += struct.calcsize(f"<{code}")
        return number

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            begin = self._place + 8
            self._place = begin + self.scalar("Q")
            return self._data[begin : self._place].decode()
        if kind == _ARRAY:
            item = self.scalar("I")
            return [self.value(item) for _ in range(self.scalar("Q"))]
        return self.scalar(_SCALARS[kind])


def metadata(data: bytes) -> dict[str, Any]:
    """Keys and values of a GGUF file. data: the file, or as much of its beginning as holds them all."""
    reader = _Reader(data)
    magic, _, _, count = (reader.scalar(code) for code in ("I", "I", "Q", "Q"))
    if magic != int.from_bytes(b"GGUF", "little"):
        raise ValueError("expected a GGUF file")
    return {reader.value(_STRING): reader.value(reader.scalar("I")) for _ in range(count)}


def smollm_json(data: bytes) -> bytes:
    """The tokenizer of a SmolLM: GPT-2's pre-tokenizer with every digit by itself."""
    values = metadata(data)
    if values.get("tokenizer.ggml.pre") != "smollm":
        raise ValueError(f"expected a GGUF file of SmolLM, got one of {values.get('tokenizer.ggml.pre')!r}")
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    kinds = values["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    description = {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": token, **flags}
            for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": values["tokenizer.ggml.merges"],
        },
    }
    return json.dumps(description, ensure_ascii=False).encode()
