"""What a run was started with that its config names but does not hold: data, W, the teacher's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_xtoken.data import Manifest
from nemo_xtoken.errors import CheckpointError

Inputs = dict[str, str]
"""A value for each input that is another one when the input is."""


def data_key(manifests: Sequence[Manifest]) -> str:
    """The text and the tokenizers of prepared data, wherever it lies; in the order of a blend."""
    return hashlib.sha256(json.dumps([manifest.inputs for manifest in manifests]).encode()).hexdigest()


def file_key(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_unchanged(stored: Mapping[str, str], inputs: Mapping[str, str], run_dir: Path) -> None:
    """Raises CheckpointError where a resumed run would go on with other inputs than it was started with."""
    changed = [name for name in sorted({*stored, *inputs}) if stored.get(name) != inputs.get(name)]
    if changed:
        raise CheckpointError(
            f"the run in {run_dir} was started with another {', '.join(changed)} (the config's paths are the same, "
            "what is there is not): put it back or choose another run_dir"
        )
