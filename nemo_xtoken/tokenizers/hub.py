"""Tokenizer files of a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError

from nemo_xtoken.errors import SpecError, TokenizerError

_VOCABULARIES = ("tokenizer.json", "tokenizer.model")
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
_TIMEOUT = 10.0


def fetch(name: str) -> Path:
    """The tokenizer file of a model, from the local cache or else the hub, with its config beside it.

    Raises SpecError where the hub has no such tokenizer, TokenizerError where it can't be reached.
    """
    return _cached(name) or _download(name)


def _cached(name: str) -> Path | None:
    paths = (try_to_load_from_cache(name, filename) for filename in _VOCABULARIES)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _download(name: str) -> Path:
    try:
        # One request that isn't repeated: without a network this fails at once.
        api = cast("Any", HfApi())
        files = {file.rfilename for file in api.model_info(name, timeout=_TIMEOUT).siblings or ()}
        vocabulary = next((filename for filename in _VOCABULARIES if filename in files), None)
        if vocabulary is None:
            raise SpecError(f"{name}: expected {' or '.join(_VOCABULARIES)} on the hub, the model has neither")
        for filename in _CONFIGS:
            if filename in files:
                api.hf_hub_download(name, filename)
        return Path(api.hf_hub_download(name, vocabulary))
    except TokenizerError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        kind = SpecError if isinstance(error, RepositoryNotFoundError) else TokenizerError
        raise kind(
            f"{name!r} is no file here and could not be had from the Hugging Face hub ({reason[0]}); "
            "give the path of a tokenizer file or directory"
        ) from None
