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
from megatron.core.models.gpt import GPTModel
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
from nemo_xtoken.integrations.megatron.model_checkpoint import HeadIds, load_model
from nemo_xtoken.integrations.megatron.setup import check_length, check_tokens
from nemo_xtoken.integrations.megatron.teacher_data import data_fingerprint, data_of, precision_key
from nemo_xtoken.integrations.megatron.teacher_forward import TeacherTokens, build_teacher, forward_all
from nemo_xtoken.parallel import context_positions
from nemo_xtoken.parallel.logits import logits_of
from nemo_xtoken.teachers.cache import CacheManifest, ShardFile, StoredHead, cache_directory, shard_starts
from nemo_xtoken.teachers.cache.reader import missing_shards
from nemo_xtoken.teachers.cache.rows import choose_top_k, draw, encode_hidden, encode_sparse
from nemo_xtoken.types import DistillBatch, SparseLogits

BLOCK_ROWS = 256
"""Rows whose logits over the whole vocabulary are there at a time."""


def run_rank(config: RunConfig, job: CacheJob, init_method: str) -> list[Filled]:
    """Fill the caches as the rank that the environment names; every rank gets the result."""
    # A teacher has no virtual stages.
    parallel = replace(config.parallel, virtual_pipeline_model_parallel_size=1)
    layout = layouts.start(parallel, config.device, config.train.seed, init_method)
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
    side = first.teachers[number].side
    length = config.data.teacher_length(side.name)
    check_length(
        f"the sequences of {side.name}, data.teacher_sequence_length or in teacher_lengths,", length, layout.parallel
    )
    check_tokens(f"the sequences of {side.name}", length, teacher, layout.parallel, config.train.micro_batch_size)
    ids = HeadIds(teacher.model.vocab_size or side.vocab_size, side.fingerprint)
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    model = build_teacher(teacher, layout, ids, length, dtype)
    checkpoint = load_model(model, Path(teacher.checkpoint), f"teacher {teacher.name!r}", ids)
    runner = _Runner(model, layout, teacher, job, config.train.micro_batch_size)
    key = fingerprint(checkpoint)
    return [runner.fill(*data_of(config, teacher, path), path, key) for path in paths]


class _Runner:
    """One teacher on this rank, and what is to be stored of it."""

    def __init__(
        self, model: GPTModel, layout: Layout, teacher: TeacherConfig, job: CacheJob, micro_batch_size: int
    ) -> None:
        self.model, self.layout, self.teacher, self.job = model, layout, teacher, job
        self.micro_batch_size, self.tp, self.cp = micro_batch_size, layout.groups.tp, layout.groups.cp
        self.is_writer = layout.is_last_stage and self.tp.rank() == self.cp.rank() == 0

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
            fp8=precision_key(self.teacher),
        )
        if self.layout.rank == 0:
            manifest.claim(directory)
        dist.barrier()
        manifest.check_same(CacheManifest.load(directory), directory)
        if self.layout.is_last_stage and not manifest.storage.is_sparse:
            self._write_head(manifest.vocab_size, directory)
        written = self._write_shards(builder, number, manifest, directory)
        dist.barrier()
        counted = torch.tensor([written], device=self.layout.device)
        dist.all_reduce(counted, group=self.layout.groups.dp)
        files = [ShardFile(directory, i).path for i in range(manifest.num_shards)]
        size = sum(file.stat().st_size for file in files if file.is_file())
        missing = len(missing_shards(directory, manifest))
        return Filled(str(directory), manifest.tokens, manifest.num_shards, int(counted), missing, size)

    def _write_shards(self, builder: SampleBuilder, number: int, manifest: CacheManifest, directory: Path) -> int:
        index, count = self.job.part
        dp, written = self.layout.groups.dp, 0
        missing = self._missing(range(index, manifest.num_shards, count), directory)
        for shard in missing[dp.rank() :: dp.size()]:
            tensors = self._shard(builder, number, manifest, shard)
            if self.is_writer:
                ShardFile(directory, shard).write(tensors)
                sys.stderr.write(f"{self.teacher.name}: {directory} shard {shard + 1} of {manifest.num_shards}\n")
            written += 1
        return written

    def _missing(self, shards: range, directory: Path) -> list[int]:
        """Those that the first rank has not found: a file may appear between two ranks' looks."""
        found = [[shard for shard in shards if not ShardFile(directory, shard).is_done]]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def _shard(self, builder: SampleBuilder, number: int, manifest: CacheManifest, shard: int) -> dict[str, Tensor]:
        """The tensors of one shard; tokens that no sequence of the run holds have rows of 0, or no entries."""
        first, end = manifest.shard_starts[shard : shard + 2]
        storage, sparse = manifest.storage, SparseLogits.empty(end - first, manifest.storage.count, manifest.vocab_size)
        dtype = torch.bfloat16 if storage.stored_as == "bf16" else torch.float32
        stored = torch.zeros(0 if storage.is_sparse else end - first, manifest.hidden_size, dtype=dtype)
        generator = torch.Generator(self.layout.device).manual_seed((self.job.seed << 20) + shard)
        batches = list(self._batches(builder, number, first, end))

        def take(place: int, hidden: Tensor) -> None:
            batch = batches[place]
            assert batch.teacher_places is not None
            # Of a batch that was filled up, its own sequences.
            hidden = self._of_all_positions(hidden)[: batch.teacher_places.numel()]
            places = batch.teacher_places.flatten()
            real = places >= 0
            rows = places[real].cpu() - first
            if storage.is_sparse:
                found = self._sparse(hidden[real], batch.teacher_labels.flatten()[real], manifest, generator)
                width = found.ids.shape[1]
                sparse.ids[rows, :width], sparse.log_probs[rows, :width] = found.ids, found.log_probs
            else:
                stored[rows] = hidden[real].cpu().to(dtype)

        forward_all(self.model, self.layout, [self._inputs(batch) for batch in batches], take)
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

    def _inputs(self, batch: DistillBatch) -> TeacherTokens:
        """The batch with its first sequence again where it has less than others: pipeline stages send one shape."""
        kept = torch.arange(self.micro_batch_size, device=batch.teacher_tokens.device)
        kept[kept >= len(batch.teacher_tokens)] = 0
        return TeacherTokens(batch.teacher_tokens[kept], batch.teacher_position_ids[kept])

    def _of_all_positions(self, hidden: Tensor) -> Tensor:
        """[b*t, h] from what the ranks of the cp group have, [b*t/cp, h]. One all-gather over cp."""
        size = self.cp.size()
        if size == 1:
            return hidden
        parts = self._gathered(hidden, self.cp).view(size, self.micro_batch_size, -1, hidden.shape[-1])
        length = size * parts.shape[2]
        whole = parts.new_empty(self.micro_batch_size, length, hidden.shape[-1])
        for rank, part in enumerate(parts):
            whole[:, context_positions(length, rank, size)] = part
        return whole.flatten(0, 1)

    def _sparse(
        self, hidden: Tensor, labels: Tensor, manifest: CacheManifest, generator: torch.Generator
    ) -> SparseLogits:
        """Entries of rows [n, h], by blocks of logits that are gathered over tp; the same on every tp rank."""
        model, storage = self.model, manifest.storage
        blocks: list[SparseLogits] = []
        for rows, following in zip(hidden.split(BLOCK_ROWS), labels.split(BLOCK_ROWS), strict=True):
            local = logits_of(rows, head_weight(model), head_options(model))
            logits = self._gathered(local.t(), self.tp).t()[:, : manifest.vocab_size]
            log_probs = logits.float().log_softmax(-1)
            is_top = storage.stored_as == "top_k"
            found = choose_top_k(log_probs, following, storage.count) if is_top else None
            blocks.append((found or draw(log_probs, storage.count, generator)).to("cpu"))
        ids, log_probs = (torch.cat(parts) for parts in zip(*((b.ids, b.log_probs) for b in blocks), strict=True))
        return SparseLogits(ids, log_probs, manifest.vocab_size)

    def _write_head(self, vocab_size: int, directory: Path) -> None:
        """The head of all tp ranks, without padded ids."""
        options = head_options(self.model)
        weight = self._gathered(head_weight(self.model).detach(), self.tp)[:vocab_size].cpu()
        bias = None if options.bias is None else self._gathered(options.bias.detach(), self.tp)[:vocab_size].cpu()
        if self.is_writer and self.layout.groups.dp.rank() == 0:
            StoredHead(weight, replace(options, bias=bias)).save(directory)

    def _gathered(self, shard: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Equal shards of all ranks of a group, one after another along the first dimension."""
        if group.size() == 1:
            return shard
        shard = shard.contiguous()
        whole = shard.new_empty(group.size() * len(shard), *shard.shape[1:])
        dist.all_gather_into_tensor(whole, shard, group=group)
        return whole


def _pieces_between(pieces: Pieces, begin: int, stop: int) -> Pieces:
    arrays = {f.name: getattr(pieces, f.name) for f in fields(pieces)}
    cut = {name: array[..., begin:stop] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return replace(pieces, **cut)
