"""What a node has to show before a training starts on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

ECC_ERRORS = "ecc.errors.uncorrected.volatile.total"
"""Memory errors since the driver was loaded; a card without error correction says [N/A]."""


def faults(gpus: int, directory: Path, free_disk_gb: float) -> Iterator[str]:
    """What is wrong with this node, nothing if it is fit.

    gpus          that must answer nvidia-smi without an uncorrected memory error; 0: not asked
    free_disk_gb  that must be free in `directory` (GB = 10^9 bytes), which is made where it is missing
    """
    if gpus:
        yield from _gpu_faults(gpus)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free / 1e9
    except OSError as error:
        yield f"{directory} can't be used: {error.strerror}"
        return
    if free < free_disk_gb:
        yield f"{free:.1f} GB are free in {directory}, expected {free_disk_gb:g}"


def node_name() -> str:
    """This node's name, as SLURM knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _gpu_faults(gpus: int) -> Iterator[str]:
    if shutil.which("nvidia-smi") is None:
        yield "nvidia-smi is missing"
        return
    query = ["nvidia-smi", f"--query-gpu={ECC_ERRORS}", "--format=csv,noheader,nounits"]
    try:
        finished = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        yield "nvidia-smi did not answer within 60 s"
        return
    if finished.returncode:
        yield f"nvidia-smi failed: {(finished.stdout + finished.stderr).strip().partition(chr(10))[0]}"
        return
    counts = [line.strip() for line in finished.stdout.splitlines() if line.strip()]
    if len(counts) < gpus:
        yield f"{len(counts)} of {gpus} GPUs answer"
    for index, count in enumerate(counts):
        if count.isdigit() and int(count):
            yield f"GPU {index} has {count} uncorrected memory errors"
