"""What was stored of a teacher: a row per token of prepared data, in shards, beside that data."""

from nemo_xtoken.teachers.cache.manifest import CacheManifest, cache_directory, shard_starts
from nemo_xtoken.teachers.cache.reader import CacheReader, check_shards
from nemo_xtoken.teachers.cache.rows import Storage, StoredAs
from nemo_xtoken.teachers.cache.shards import ShardFile
from nemo_xtoken.teachers.cache.stored_head import StoredHead

__all__ = [
    "CacheManifest",
    "CacheReader",
    "ShardFile",
    "Storage",
    "StoredAs",
    "StoredHead",
    "cache_directory",
    "check_shards",
    "shard_starts",
]
