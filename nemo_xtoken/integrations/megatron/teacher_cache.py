"""Fills caches of teachers: runs each over the prepared data, once, and stores a row per token.

Shards are dealt out over the jobs of an array and the data-parallel ranks of each. One that is done is not done again,
so a job that was killed goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.config import RunConfig, TeacherConfig
from nemo_xtoken.data.collate import collate
from nemo_xtoken.data.packing import pack_in_order
from nemo_xtoken.data.pieces import Pieces
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import data_paths, teacher_numbers
from nemo_xtoken.data.sample import SampleBuilder
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron.caching import CacheJob, Filled
from nemo_xtoken.integrations.megatron.checkpoint_files import fingerprint
from nemo_xtoken.integrations.megatron.head_tap import head_options, head_weight
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.teacher import ColocatedSource, load_teacher
from nemo_xtoken.integrations.megatron.teacher_data import data_fingerprint, data_of
from nemo_xtoken.parallel.logits import logits_of
from nemo_xtoken.teachers.cache import CacheManifest, ShardFile, StoredHead, cache_directory, shard_starts
from nemo_xtoken.teachers.cache.reader import missing_shards
from nemo_xtoken.teachers.cache.rows import choose_top_k, draw, encode_hidden, encode_sparse
from nemo_xtoken.types import DistillBatch, SparseLogits

BLOCK_ROWS = 256
"""Rows whose logits over the whole vocabulary are there at a time."""


def run_rank(config: RunConfig, job: CacheJob, init_method: str) -> list[Filled]:
    """Fill the caches as the rank that the environment names; every rank gets the result."""
    layout = layouts.start(config.parallel, config.device, config.train.seed, init_method)
    try:
        chosen = [teacher for teacher in config.teachers if not job.teachers or teacher.name in job.teachers]
        return [result for teacher in chosen for result in _fill_all(config, teacher, job, layout)]
    finally:
        layouts.stop()


def _fill_all(config: RunConfig, teacher: TeacherConfig, job: CacheJob, layout: Layout) -> list[Filled]:
    """The caches of one teacher for all data of the run."""
    paths = list(dict.fromkeys(data_paths(config.data)))
    first = PreparedData.open(paths[0])
    (number,) = teacher_numbers([teacher], first.manifest, paths[0])
    model, checkpoint = load_teacher(
        teacher,
        layout,
        tokenizer=first.teachers[number].side,
        max_sequence_length=config.data.teacher_length(first.teachers[number].side.name),
        params_dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
    )
    runner = _Runner(ColocatedSource(model, layout), layout, teacher, job, config.train.micro_batch_size)
    key = fingerprint(checkpoint)
    return [runner.fill(*data_of(config, teacher, path), path, key) for path in paths]


class _Runner:
    """One teacher on this rank, and what is to be stored of it."""

    def __init__(
        self, source: ColocatedSource, layout: Layout, teacher: TeacherConfig, job: CacheJob, micro_batch_size: int
    ) -> None:
        self.source, self.layout, self.teacher, self.job = source, layout, teacher, job
        self.micro_batch_size, self.tp = micro_batch_size, layout.groups.tp

    def fill(self, builder: SampleBuilder, number: int, path: str, teacher_key: str) -> Filled:
        """This job's shards of the cache of one directory of prepared data."""
        directory = cache_directory(path, self.teacher.cache_name)
        side = builder.prepared.teachers[number]
        manifest = CacheManifest(
            teacher=teacher_key,
            data=data_fingerprint(builder, number),
            hidden_size=self.teacher.model.hidden_size,
            vocab_size=self.teacher.model.vocab_size or side.side.vocab_size,
            storage=self.job.storage,
            shard_starts=shard_starts(side.lengths, self.job.shard_tokens),
            seed=self.job.seed,
        )
        head = None if manifest.storage.is_sparse else self._whole_head(manifest.vocab_size)
        if self.layout.rank == 0:
            manifest.claim(directory)
            if head is not None:
                head.save(directory)
        dist.barrier()
        manifest.check_same(CacheManifest.load(directory), directory)
        written = self._write_shards(builder, number, manifest, directory)
        counted = torch.tensor([written], device=self.layout.device)
        dist.all_reduce(counted, group=self.layout.groups.dp)
        files = [ShardFile(directory, i).path for i in range(manifest.num_shards)]
        size = sum(file.stat().st_size for file in files if file.is_file())
        missing = len(missing_shards(directory, manifest))
        return Filled(str(directory), manifest.tokens, manifest.num_shards, int(counted), missing, size)

    def _write_shards(self, builder: SampleBuilder, number: int, manifest: CacheManifest, directory: Path) -> int:
        index, count = self.job.part
        dp, written = self.layout.groups.dp, 0
        for shard in range(index, manifest.num_shards, count)[dp.rank() :: dp.size()]:
            file = ShardFile(directory, shard)
            if self._agreed(file.is_done):
                continue
            tensors = self._shard(builder, number, manifest, shard)
            if self.tp.rank() == 0:
                file.write(tensors)
                sys.stderr.write(f"{self.teacher.name}: {directory} shard {shard + 1} of {manifest.num_shards}\n")
            written += 1
        return written

    def _agreed(self, is_done: bool) -> bool:
        """What the first rank of the tp group has seen: a file may appear between two ranks' looks."""
        seen = [is_done]
        dist.broadcast_object_list(seen, dist.get_global_rank(self.tp, 0), group=self.tp)
        return seen[0]

    def _shard(self, builder: SampleBuilder, number: int, manifest: CacheManifest, shard: int) -> dict[str, Tensor]:
        """The tensors of one shard; tokens that no sequence of the run holds have rows of 0, or no entries."""
        first, end = manifest.shard_starts[shard : shard + 2]
        storage, sparse = manifest.storage, SparseLogits.empty(end - first, manifest.storage.count, manifest.vocab_size)
        dtype = torch.bfloat16 if storage.stored_as == "bf16" else torch.float32
        stored = torch.zeros(0 if storage.is_sparse else end - first, manifest.hidden_size, dtype=dtype)
        generator = torch.Generator(self.layout.device).manual_seed((self.job.seed << 20) + shard)
        for batch in self._batches(builder, number, first, end):
            hidden = self.source.hidden(batch)
            assert batch.teacher_places is not None
            places = batch.teacher_places.flatten()
            real = places >= 0
            rows = places[real].cpu() - first
            if storage.is_sparse:
                found = self._sparse(hidden[real], batch.teacher_labels.flatten()[real], manifest, generator)
                width = found.ids.shape[1]
                sparse.ids[rows, :width], sparse.log_probs[rows, :width] = found.ids, found.log_probs
            else:
                stored[rows] = hidden[real].cpu().to(dtype)
        return encode_sparse(sparse, storage) if storage.is_sparse else encode_hidden(stored, storage)

    def _batches(self, builder: SampleBuilder, number: int, first: int, end: int) -> Iterator[DistillBatch]:
        """The pieces of the documents of tokens [first, end), packed in order."""
        pieces = builder.pieces
        starts = builder.prepared.teachers[number].first_tokens[pieces.document]
        begin, stop = np.searchsorted(starts, [first, end]).tolist()
        if begin == stop:
            return
        packing = pack_in_order(
            _pieces_between(pieces, begin, stop), builder.student_sequence_length, builder.teacher_sequence_lengths
        )
        for at in range(0, len(packing), self.micro_batch_size):
            chosen = [packing[i] + begin for i in range(at, min(at + self.micro_batch_size, len(packing)))]
            yield collate([builder.build(pieces) for pieces in chosen]).to(self.layout.device)

    def _sparse(
        self, hidden: Tensor, labels: Tensor, manifest: CacheManifest, generator: torch.Generator
    ) -> SparseLogits:
        """Entries of rows [n, h], by blocks of logits that are gathered over tp; the same on every tp rank."""
        model, storage = self.source.model, manifest.storage
        blocks: list[SparseLogits] = []
        for rows, following in zip(hidden.split(BLOCK_ROWS), labels.split(BLOCK_ROWS), strict=True):
            local = logits_of(rows, head_weight(model), head_options(model))
            logits = self._gathered(local.t()).t()[:, : manifest.vocab_size]
            log_probs = logits.float().log_softmax(-1)
            is_top = storage.stored_as == "top_k"
            found = choose_top_k(log_probs, following, storage.count) if is_top else None
            blocks.append((found or draw(log_probs, storage.count, generator)).to("cpu"))
        ids, log_probs = (torch.cat(parts) for parts in zip(*((b.ids, b.log_probs) for b in blocks), strict=True))
        return SparseLogits(ids, log_probs, manifest.vocab_size)

    def _whole_head(self, vocab_size: int) -> StoredHead:
        """The head of all tp ranks, without padded ids, on the CPU."""
        options = head_options(self.source.model)
        weight = self._gathered(head_weight(self.source.model).detach())[:vocab_size].cpu()
        bias = None if options.bias is None else self._gathered(options.bias.detach())[:vocab_size].cpu()
        return StoredHead(weight, replace(options, bias=bias))

    def _gathered(self, shard: Tensor) -> Tensor:
        """Equal shards of all tp ranks, one after another along the first dimension."""
        if self.tp.size() == 1:
            return shard
        shard = shard.contiguous()
        whole = shard.new_empty(self.tp.size() * len(shard), *shard.shape[1:])
        dist.all_gather_into_tensor(whole, shard, group=self.tp)
        return whole


def _pieces_between(pieces: Pieces, begin: int, stop: int) -> Pieces:
    arrays = {f.name: getattr(pieces, f.name) for f in fields(pieces)}
    cut = {name: array[..., begin:stop] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return replace(pieces, **cut)
