"""W that a training builds for itself: a file in a folder, named by everything that decides what is in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_xtoken import tokenizers
from nemo_xtoken.errors import ProjectionError, TokenizerError
from nemo_xtoken.projection import file
from nemo_xtoken.projection.build import BuildOptions, build
from nemo_xtoken.tokenizers import Tokenizer

_PREFIX = "projection-"
_DEFAULTS = BuildOptions()


@dataclass(frozen=True)
class KnownTokenizer:
    """A tokenizer that something was made with: where it was, and its fingerprint."""

    spec: str
    fingerprint: str

    def load(self) -> Tokenizer:
        """The tokenizer itself. Raises TokenizerError where it is gone or is another one by now."""
        tokenizer = tokenizers.load(self.spec)
        if tokenizer.fingerprint != self.fingerprint:
            raise TokenizerError(
                f"{self.spec}: expected the tokenizer with fingerprint {self.fingerprint[:12]}, got one with "
                f"{tokenizer.fingerprint[:12]}: the file has changed since; put the old one back"
            )
        return tokenizer


def automatic_path(
    folder: Path, student: KnownTokenizer, teacher: KnownTokenizer, options: BuildOptions = _DEFAULTS
) -> Path:
    """The file of W in a folder: its name holds a hash of both fingerprints, the options and the file's schema."""
    content = [file.SCHEMA, student.fingerprint, teacher.fingerprint, asdict(options)]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return folder / f"{_PREFIX}{key}.safetensors"


def build_if_missing(
    folder: Path, student: KnownTokenizer, teacher: KnownTokenizer, options: BuildOptions = _DEFAULTS
) -> Path:
    """The file of W in a folder, built first where it is not there, whole or not at all.

    Raises ProjectionError where a tokenizer can't be loaded any more or the folder can't be written.
    """
    path = automatic_path(folder, student, teacher, options)
    if not path.is_file():
        try:
            pair = student.load(), teacher.load()
        except TokenizerError as error:
            raise ProjectionError(f"cannot build the projection of this run, name its file instead: {error}") from error
        build(*pair, options.top_k, options.beta, options.gamma, options.reverse_pass).save(path)
    return path


def newest_automatic(folder: Path, count: int) -> list[Path]:
    """The newest files of W that were built in a folder, at most `count`, in the order in which they were built."""
    built = sorted(folder.glob(f"{_PREFIX}*.safetensors"), key=lambda path: path.stat().st_mtime)
    return built[-count:] if count else []
