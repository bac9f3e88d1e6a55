"""Datasets on the Hugging Face hub, whose files come into its local cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi

from nemo_xtoken.data.reading import listed
from nemo_xtoken.errors import ConfigError, DataError

_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<begin>.+))?")
_TIMEOUT = 10.0


def is_hub_name(path: Path) -> bool:
    """Whether a source is meant to be on the hub."""
    return str(path).startswith("hf:")


def fetch(source: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of a dataset with one of these ends, sorted by name, from the local cache or else the hub.

    source  hf:OWNER/NAME[@REVISION][/BEGIN]; BEGIN is what the files' names begin with in the dataset
    Raises ConfigError for another name, DataError where the hub can't be reached or has no such files.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ConfigError(f"expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or either with /FOLDER, got {source!r}")
    name, revision, begin = match["name"], match["revision"], match["begin"] or ""
    try:
        # One request that isn't repeated: without a network this fails at once.
        api = cast("Any", HfApi())
        info = api.dataset_info(name, revision=revision, timeout=_TIMEOUT)
        files = sorted(file.rfilename for file in info.siblings or () if file.rfilename.startswith(begin))
        chosen = [file for file in files if file.endswith(tuple(suffixes))]
        if not chosen:
            raise DataError(
                f"{source}: expected files with {', '.join(suffixes)}, the dataset has {listed(files) or 'none there'}"
            )
        return [Path(api.hf_hub_download(name, file, repo_type="dataset", revision=info.sha)) for file in chosen]
    except DataError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source} could not be had from the Hugging Face hub ({reason[0]}); download it and give its path"
        ) from None
