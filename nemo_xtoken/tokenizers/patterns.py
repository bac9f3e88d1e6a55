"""Families of tiktoken rank files: the split pattern, the normaliser and the special tokens that such a file lacks.

Patterns and ids are those that each family's makers have published.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_xtoken.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all rank files of one family share.

    pattern       regular expression of the pieces in which bytes are merged
    highest_rank  of the published file; one that ends before it is a cut one
    specials      special token -> its published id
    roles         special token -> its role where that isn't its own text
    nfc           whether the text is brought into NFC first
    """

    pattern: str
    highest_rank: int
    specials: Mapping[str, int]
    roles: Mapping[str, str] = field(default_factory=dict[str, str])
    nfc: bool = False


_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_CL100K = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_O200K = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_QWEN = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")


def _llama3_specials() -> dict[str, int]:
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
        *(f"<|reserved_special_token_{number}|>" for number in range(2, 246)),
    ]
    return {name: 128000 + offset for offset, name in enumerate(names)}


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        pattern=_GPT2,
        highest_rank=50255,
        specials={"<|endoftext|>": 50256},
        roles={"<|endoftext|>": "eos"},
    ),
    "cl100k": Family(
        pattern=_CL100K,
        highest_rank=100255,
        specials={
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        roles={"<|endoftext|>": "eos"},
    ),
    "o200k": Family(
        pattern=_O200K,
        highest_rank=199997,
        specials={"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
        roles={"<|endoftext|>": "eos"},
    ),
    "qwen": Family(
        pattern=_QWEN,
        highest_rank=151642,
        specials={"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
        roles={"<|endoftext|>": "eos"},
        nfc=True,
    ),
    "llama3": Family(
        pattern=_CL100K,
        highest_rank=127999,
        specials=_llama3_specials(),
        roles={"<|begin_of_text|>": "bos", "<|end_of_text|>": "eos", "<|finetune_right_pad_id|>": "pad"},
    ),
}


def find_family(name: str) -> Family:
    """The family of a `?pattern=` name. Raises SpecError, with the nearest name, where there is none."""
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name.lower(), FAMILIES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SpecError(f"unknown pattern {name!r}: {hint}expected one of {', '.join(FAMILIES)}")
