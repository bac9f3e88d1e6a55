"""A complete cache, memory-mapped: the rows of any tokens of its data."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nemo_xtoken.errors import DataError
from nemo_xtoken.teachers.cache.manifest import CacheManifest
from nemo_xtoken.teachers.cache.rows import NO_ENTRY, decode_hidden, decode_sparse
from nemo_xtoken.teachers.cache.shards import ShardFile
from nemo_xtoken.teachers.cache.stored_head import StoredHead
from nemo_xtoken.types import SparseLogits


class CacheReader:
    """Rows by the number of a token among all tokens of the data. Raises DataError for a cache that is not complete."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.manifest = directory, CacheManifest.load(directory)
        missing = missing_shards(directory, self.manifest)
        if missing:
            raise DataError(
                f"{directory} is not complete: {len(missing)} of {self.manifest.num_shards} shards are missing, the "
                f"first is shard {missing[0]}; run nemo-xtoken teacher cache again, which writes what is missing"
            )
        self._starts = torch.tensor(self.manifest.shard_starts)
        self._tensors = cache(lambda number: ShardFile(directory, number).tensors())

    def head(self) -> StoredHead:
        """The teacher's head; a sparse cache has none."""
        return StoredHead.load(self.directory)

    def hidden(self, tokens: Tensor) -> Tensor:
        """[n] token numbers -> [n, h] float32 or bf16."""
        parts = [(place, decode_hidden(self._tensors(number), rows)) for number, place, rows in self._by_shard(tokens)]
        found = parts[0][1].new_empty(len(tokens), self.manifest.hidden_size) if parts else torch.empty(0, 0)
        for place, hidden in parts:
            found[place] = hidden
        return found

    def sparse(self, tokens: Tensor) -> SparseLogits:
        """[n] token numbers -> entries [n, count]."""
        manifest = self.manifest
        ids = torch.full((len(tokens), manifest.storage.count), NO_ENTRY)
        log_probs = torch.zeros(ids.shape)
        for number, place, rows in self._by_shard(tokens):
            part = decode_sparse(self._tensors(number), rows, manifest.storage, manifest.vocab_size)
            ids[place], log_probs[place] = part.ids, part.log_probs
        return SparseLogits(ids, log_probs, manifest.vocab_size)

    def _by_shard(self, tokens: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """For each shard that has some of the tokens: its number, which of them, and their rows in it."""
        shard = torch.searchsorted(self._starts, tokens, right=True) - 1
        return [
            (number, place, tokens[place] - self._starts[number])
            for number in shard.unique().tolist()
            for place in [(shard == number).nonzero().squeeze(-1)]
        ]


def missing_shards(directory: Path, manifest: CacheManifest) -> list[int]:
    """Numbers of the shards that are not done."""
    return [number for number in range(manifest.num_shards) if not ShardFile(directory, number).is_done]


def check_shards(directory: Path) -> int:
    """Compare every shard with its checksum; the number of shards. Raises DataError for the first damaged one."""
    reader = CacheReader(directory)
    for number in range(reader.manifest.num_shards):
        ShardFile(directory, number).check()
    return reader.manifest.num_shards
