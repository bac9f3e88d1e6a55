"""A run's cached teacher: its caches for all data of the run, held against the run before it starts."""

from __future__ import annotations

from pathlib import Path

import torch

from nemo_xtoken.config import LossConfig, RunConfig, TeacherConfig
from nemo_xtoken.data.run_data import data_paths
from nemo_xtoken.errors import CheckpointError, ConfigError, DataError, require
from nemo_xtoken.integrations.megatron.checkpoint_files import find_checkpoint, fingerprint
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.teacher_data import data_fingerprint, data_of, precision_key
from nemo_xtoken.teachers.cache import CacheReader, cache_directory
from nemo_xtoken.teachers.cached import CachedSource


def cached_source(
    config: RunConfig, teacher: TeacherConfig, layout: Layout, dtype: torch.dtype
) -> tuple[CachedSource, str]:
    """The source, and the fingerprint of the checkpoint that was stored.

    Raises DataError for a cache that is missing, not complete or of other data, CheckpointError where the config's
    checkpoint is there and is another one, ConfigError for a loss that what is stored can't serve.
    """
    readers = [CacheReader(cache_directory(path, teacher.cache_name)) for path in data_paths(config.data)]
    for path, reader in zip(data_paths(config.data), readers, strict=True):
        _check_data(config, teacher, path, reader)
        _check_alike(readers[0], reader)
    manifest = readers[0].manifest
    _check_checkpoint(teacher, manifest.teacher, readers[0].directory)
    _check_precision(teacher, manifest.fp8, readers[0].directory)
    if manifest.hidden_size != teacher.model.hidden_size:
        raise ConfigError(
            f"teacher {teacher.name!r}: {readers[0].directory} has hidden states of {manifest.hidden_size} numbers, "
            f"model.hidden_size is {teacher.model.hidden_size}; use the model config and the cache that belong together"
        )
    check_loss(teacher.name, teacher.loss, manifest.storage.stored_as)
    return CachedSource(readers, layout.groups.cp, layout.device, dtype), manifest.teacher


def check_loss(name: str, loss: LossConfig, stored_as: str) -> None:
    """Raises ConfigError where a loss needs more of the teacher than a cache of probabilities has."""
    owner = f"teacher {name!r}: its cache has {stored_as} probabilities"
    if stored_as not in ("top_k", "sampled"):
        return
    require(loss.direction == "forward", f"{owner}, which reverse KL can't use; set loss.direction=forward")
    if stored_as == "top_k":
        return
    require(loss.mode in ("p_kl", "same_tokenizer"), f"{owner}, which are unbiased in p_kl only, not in {loss.mode}")
    require(not loss.chain, f"{owner}, of which loss.chain would need ratios, and these are biased; set it to false")
    require(loss.temperature == 1, f"{owner}, drawn at temperature 1, got loss.temperature {loss.temperature}")
    require(
        loss.teacher_top_k is None or loss.mode == "same_tokenizer",
        f"{owner}: a choice of columns by them is biased; set loss.teacher_top_k=null",
    )
    require(
        loss.merge != "mean" or loss.one_to_one_only or loss.mode == "same_tokenizer",
        f"{owner}: a mean of the logarithms of several rows is biased; set loss.merge=first, or loss.one_to_one_only",
    )


def _check_data(config: RunConfig, teacher: TeacherConfig, path: str, reader: CacheReader) -> None:
    if reader.manifest.data != data_fingerprint(*data_of(config, teacher, path)):
        raise DataError(
            f"{reader.directory} was written for other tokens than those of {path}, or for other sequence lengths; "
            "remove it and run nemo-xtoken teacher cache again"
        )


def _check_alike(first: CacheReader, other: CacheReader) -> None:
    ours, theirs = first.manifest, other.manifest
    if (ours.teacher, ours.storage, ours.fp8) != (theirs.teacher, theirs.storage, theirs.fp8):
        raise DataError(
            f"{first.directory} and {other.directory} are of different teachers or stored differently; "
            "write them in one way, from one checkpoint"
        )


def _check_precision(teacher: TeacherConfig, stored: str, directory: Path) -> None:
    expected = precision_key(teacher)
    if stored != expected:
        raise ConfigError(
            f"teacher {teacher.name!r}: {directory} was written with the teacher's fp8 {stored or 'null'}, the config "
            f"has {expected or 'null'}; set it as it was, or write a cache of another name: teachers.N.cache=NAME"
        )


def _check_checkpoint(teacher: TeacherConfig, stored: str, directory: Path) -> None:
    """The checkpoint need not be there; where it is, it has to be the one that was stored."""
    try:
        checkpoint = find_checkpoint(Path(teacher.checkpoint), f"teacher {teacher.name!r}")
    except CheckpointError:
        return
    if fingerprint(checkpoint) != stored:
        raise CheckpointError(
            f"teacher {teacher.name!r}: {directory} was written from another checkpoint than {checkpoint}; "
            "put that one back, or remove the cache and run nemo-xtoken teacher cache again"
        )
