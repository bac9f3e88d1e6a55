"""Aligned text, on disk and in micro batches: `prepare` writes it, `PackedDataset` packs, `GlobalBatches` deals it."""

from nemo_xtoken.data.batches import EvaluationBatch, GlobalBatches, sequential_batches
from nemo_xtoken.data.blend import BlendedDataset
from nemo_xtoken.data.collate import collate
from nemo_xtoken.data.dataset import PackedDataset
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.preparation import prepare
from nemo_xtoken.data.prepared import Document, PreparedData
from nemo_xtoken.data.sample import PackedSequence, Sample
from nemo_xtoken.data.sources import part_of
from nemo_xtoken.data.statistics import Statistics, inspect

__all__ = [
    "BlendedDataset",
    "Document",
    "EvaluationBatch",
    "GlobalBatches",
    "Manifest",
    "PackedDataset",
    "PackedSequence",
    "PreparedData",
    "Sample",
    "Statistics",
    "collate",
    "inspect",
    "part_of",
    "prepare",
    "sequential_batches",
]
