"""Which features can run on a machine, and what each of the others lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from nemo_xtoken.doctor.machine import FAILING, MISSING, Machine

State = Literal["ready", "missing", "not in this version"]
Need = Callable[[Machine], str | None]


@dataclass(frozen=True)
class Status:
    """Whether a feature can run here; `detail` says what is missing."""

    feature: str
    state: State
    detail: str


def statuses(machine: Machine) -> list[Status]:
    """The state of every feature, in the order of FEATURES. One that has no room yet is not in this version."""
    return [_status(name, room, needs, machine) for name, (room, needs) in FEATURES.items()]


def _status(name: str, room: str, needs: tuple[Need, ...], machine: Machine) -> Status:
    if importlib.util.find_spec(f"nemo_xtoken.{room}") is None:
        return Status(name, "not in this version", "not in this version")
    lacks = [lack for need in needs if (lack := need(machine))]
    return Status(name, "missing" if lacks else "ready", f"missing: {'; '.join(lacks)}" if lacks else "can run here")


def package(distribution: str, hint: str = "") -> Need:
    """A need of an installed distribution; `hint` says where it comes from."""

    def lack(machine: Machine) -> str | None:
        if machine.has(distribution):
            return None
        found = machine.versions[distribution]
        return " ".join(part for part in (distribution, hint, "" if found == MISSING else f"({found})") if part)

    return lack


def series(distribution: str, prefix: str, reason: str) -> Need:
    """A need of a version of an installed distribution that begins with `prefix`."""

    def lack(machine: Machine) -> str | None:
        found = machine.versions[distribution]
        return None if found.startswith(prefix) else f"{distribution} {prefix}x, {reason} (found: {found})"

    return lack


def gpu(major: int = 0, minor: int = 0) -> Need:
    """A need of a CUDA device of at least this compute capability."""

    def lack(machine: Machine) -> str | None:
        if any(found.capability >= (major, minor) for found in machine.gpus):
            return None
        return f"a CUDA device of compute capability {major}.{minor} or higher" if major else "a CUDA device"

    return lack


def fused(machine: Machine) -> str | None:
    """A need of fused kernels from NVIDIA's apex or from Transformer Engine."""
    if machine.has("apex") or machine.has("transformer-engine"):
        return None
    return "transformer-engine or NVIDIA's apex, as in NVIDIA's containers"


def slurm(machine: Machine) -> str | None:
    """A need of a SLURM client that finds its cluster."""
    sbatch = machine.slurm["sbatch"]
    if sbatch == MISSING:
        return "sbatch on PATH"
    return f"a SLURM that answers (sbatch: {sbatch})" if sbatch.startswith(FAILING) else None


MEGATRON = package("megatron-core")
TRANSFORMER_ENGINE = package("transformer-engine")
BRIDGE = package("megatron-bridge", "extra 'bridge', in an environment of its own")
NEMO = (
    package("nemo-toolkit", "2.x, extra 'nemo', in an environment of its own"),
    package("nemo-run", "for recipes and the nemo command"),
    series("megatron-core", "0.15.", "with which NeMo's checkpoints work"),
)
FEATURES: Mapping[str, tuple[str, tuple[Need, ...]]] = {
    "Tokenizers, alignment, projection, data": ("projection", ()),
    "Training on CPU": ("integrations.megatron", (MEGATRON,)),
    "Training on GPU": ("integrations.megatron", (MEGATRON, gpu())),
    "Fused optimizer and norms": ("integrations.megatron", (MEGATRON, gpu(), fused)),
    "HTML report": ("report", ()),
    "Triton kernels": ("kernels", (gpu(), package("triton"))),
    "FP8, delayed scaling": ("fp8", (gpu(8, 9), TRANSFORMER_ENGINE)),
    "FP8, current scaling": ("fp8", (gpu(8, 9), TRANSFORMER_ENGINE)),
    "FP8, blockwise": ("fp8", (gpu(9, 0), TRANSFORMER_ENGINE)),
    "FP8, MXFP8": ("fp8", (gpu(10, 0), TRANSFORMER_ENGINE)),
    "FP8 emulated on CPU": ("fp8", ()),
    "Cached teacher, teacher on other ranks": ("teachers", (MEGATRON,)),
    "NeMo 2.x on CPU": ("integrations.nemo", NEMO),
    "NeMo 2.x on GPU": ("integrations.nemo", (*NEMO, gpu(), TRANSFORMER_ENGINE)),
    "Megatron-Bridge on CPU": ("integrations.bridge", (BRIDGE,)),
    "Megatron-Bridge on GPU": ("integrations.bridge", (BRIDGE, gpu(), TRANSFORMER_ENGINE)),
    "SLURM launch": ("launch", (slurm,)),
}
