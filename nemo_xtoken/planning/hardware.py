"""Rates of GPUs and what they are connected by: stated, not measured. Plans are as good as these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Of one GPU, in bytes and seconds.

    memory       of the GPU; `usable` is the share that a plan fills, the rest is for NCCL, kernels and fragments
    flops        dense bf16 products, by the vendor
    training, forward  the share of it that a training, a forward pass alone reaches
    links        within a node, per GPU and direction: what tensor parallelism sends over
    host         between a GPU and the memory of its host, per direction
    network      between nodes, per GPU and direction
    disk         from a shared file system, per GPU
    node_gpus    of one node: tensor parallelism does not leave it
    """

    memory: float
    flops: float
    usable: float = 0.9
    training: float = 0.4
    forward: float = 0.5
    links: float = 450e9
    host: float = 50e9
    network: float = 50e9
    disk: float = 0.25e9
    node_gpus: int = 8


HARDWARE = {
    "a100": Hardware(memory=80e9, flops=312e12, links=300e9, network=25e9),
    "h100": Hardware(memory=80e9, flops=989e12),
    "h200": Hardware(memory=141e9, flops=989e12),
    "b200": Hardware(memory=180e9, flops=2250e12, links=900e9),
}
