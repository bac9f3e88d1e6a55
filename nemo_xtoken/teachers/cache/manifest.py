"""What a cache holds and what it was made from: `cache.json`, the same for every job of an array that fills it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.teachers.cache.rows import Storage
from nemo_xtoken.whole_file import write_whole

SCHEMA_VERSION = 1
FILE = "cache.json"


@dataclass(frozen=True, kw_only=True)
class CacheManifest:
    """A teacher's rows for all of its tokens in one directory of prepared data.

    teacher         fingerprint of the checkpoint
    data            fingerprint of the prepared tokens, and of where they are cut into sequences
    vocab_size      real ids of the teacher's head
    shard_starts    the first token of each shard, and the number of all tokens
    seed            of the draws of a sampled cache
    fp8             how the teacher's layers multiplied, "" without FP8
    """

    teacher: str
    data: str
    hidden_size: int
    vocab_size: int
    storage: Storage
    shard_starts: tuple[int, ...]
    seed: int = 0
    fp8: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def num_shards(self) -> int:
        """Files of a complete cache."""
        return len(self.shard_starts) - 1

    @property
    def tokens(self) -> int:
        """Rows of a complete cache."""
        return self.shard_starts[-1]

    def claim(self, directory: Path) -> None:
        """Write it where there is none. Raises ConfigError where the directory holds another cache."""
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / FILE).is_file():
            self.check_same(CacheManifest.load(directory), directory)
            return
        write_whole(directory / FILE, json.dumps(asdict(self)) + "\n")

    def check_same(self, stored: CacheManifest, directory: Path) -> None:
        """Raises ConfigError, naming what differs, where `stored` is of another cache."""
        different = [name for name, value in asdict(self).items() if value != asdict(stored)[name]]
        if different:
            raise ConfigError(
                f"{directory} holds a cache with another {', '.join(different)}; remove it, or write this one under "
                "another name: teachers.N.cache=NAME"
            )

    @classmethod
    def load(cls, directory: Path) -> CacheManifest:
        """Raises DataError where there is none, or it is damaged or of another schema."""
        path = directory / FILE
        if not path.is_file():
            raise DataError(f"expected a teacher's cache at {directory}, found none; run nemo-xtoken teacher cache")
        try:
            content = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
            storage = Storage(**content.pop("storage"))
            starts = tuple(int(start) for start in content.pop("shard_starts"))
            manifest = cls(**content, storage=storage, shard_starts=starts)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise DataError(f"cannot read {path} ({error}); remove the directory and write the cache again") from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema version {manifest.schema_version}, expected {SCHEMA_VERSION}; write the cache again"
            )
        return manifest


def cache_directory(data_path: str | Path, name: str) -> Path:
    """Where the cache of this name of prepared data lies: beside it, so that preparing again leaves it alone."""
    path = Path(data_path)
    return path.with_name(f"{path.name}.teachers") / name


def shard_starts(document_lengths: NDArray[np.int64], shard_tokens: int) -> tuple[int, ...]:
    """First tokens of shards of whole documents, of at least `shard_tokens` tokens but for the last; then all."""
    ends = np.cumsum(document_lengths)
    starts, total = [0], int(ends[-1]) if len(ends) else 0
    while starts[-1] < total:
        at = int(np.searchsorted(ends, starts[-1] + shard_tokens))
        starts.append(int(ends[min(at, len(ends) - 1)]))
    return tuple(starts)
