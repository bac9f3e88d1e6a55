"""Mistral's `tekken.json`: a byte-level BPE with its split pattern, whose special tokens have the lowest ids."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nemo_xtoken.errors import TokenizerError
from nemo_xtoken.tokenizers.patterns import Family
from nemo_xtoken.tokenizers.tiktoken_file import RankFileTokenizer, check_ranks

MARK = b'"default_num_special_tokens"'
"""What every file of this format has near its beginning, and no other has."""

_ROLES = {"<unk>": "unk", "<s>": "bos", "</s>": "eos", "<pad>": "pad"}

# Files of before version 11 don't name their special tokens.
_EARLY_SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def load_tekken(spec: str, path: Path) -> RankFileTokenizer:
    """Load a `tekken.json`. Raises TokenizerError where it is none."""
    try:
        description = cast("Mapping[str, Any]", json.loads(path.read_bytes()))
        num_specials = int(description["config"]["default_num_special_tokens"])
        num_ranks = int(description["config"]["default_vocab_size"]) - num_specials
        family = Family(
            pattern=str(description["config"]["pattern"]),
            highest_rank=num_specials + num_ranks - 1,
            specials=_special_ids(description, num_specials),
            roles=_ROLES,
        )
        ranks = {
            base64.b64decode(token["token_bytes"], validate=True): num_specials + int(token["rank"])
            for token in description["vocab"]
            if token["rank"] < num_ranks
        }
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TokenizerError(f"{path}: expected Mistral's tekken.json, got one that can't be read: {reason}") from None
    check_ranks(path, ranks)
    return RankFileTokenizer(spec, ranks, family)


def _special_ids(description: Mapping[str, Any], num_specials: int) -> dict[str, int]:
    named = description.get("special_tokens")
    if named is None:
        names = dict(enumerate(_EARLY_SPECIALS))
    else:
        names = {int(token["rank"]): str(token["token_str"]) for token in named}
    return {names.get(token_id, f"<SPECIAL_{token_id}>"): token_id for token_id in range(num_specials)}
