"""The facts: software versions, devices, SLURM, and what megatron-core takes here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from nemo_xtoken.integrations.megatron.facts import has_apex, megatron_facts

MISSING = "not installed"
FAILING = "on PATH, but"
"""How the version of a command begins that has none to tell."""
OTHER_APEX = "not NVIDIA's: PyPI's apex is another project"
PACKAGES = (
    "nemo-xtoken",
    "torch",
    "megatron-core",
    "numpy",
    "tokenizers",
    "tiktoken",
    "sentencepiece",
    "safetensors",
    "omegaconf",
    "transformer-engine",
    "apex",
    "triton",
    "nemo-toolkit",
    "megatron-bridge",
    "nemo-run",
)
SLURM_COMMANDS = ("sbatch", "sinfo")
GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; capability as (major, minor), memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        return f"{self.name}, compute capability {'.'.join(map(str, self.capability))}, {self.memory / GIB:.0f} GiB"


@dataclass(frozen=True)
class Machine:
    """What was found.

    versions         by distribution, "not installed" where it is not; Python's own under "python"
    cpu_cores        those that this process may use
    memory           of the machine, in bytes
    cuda             the CUDA version torch was built for; None for a CPU build
    gpus             CUDA devices that torch can use
    slurm            version by command, "not installed" where it is not on PATH
    megatron         what megatron-core takes here: optimizer, norm, layers, communication
    """

    versions: Mapping[str, str]
    cpu_cores: int
    memory: int
    cuda: str | None
    gpus: tuple[Gpu, ...]
    slurm: Mapping[str, str]
    megatron: Mapping[str, str]

    def has(self, distribution: str) -> bool:
        """Whether a distribution is installed, and is the one that is meant."""
        return self.versions[distribution] not in (MISSING, OTHER_APEX)

    def sections(self) -> dict[str, dict[str, str]]:
        """Everything as titled name-value pairs, for people."""
        devices = {f"GPU {i}": str(gpu) for i, gpu in enumerate(self.gpus)} or {"GPU": "none that torch can use"}
        cpu = f"{self.cpu_cores} cores, {self.memory / GIB:.0f} GiB"
        return {
            "Software": dict(self.versions),
            "Devices": {**devices, "CPU": cpu, "torch built for": f"CUDA {self.cuda}" if self.cuda else "CPU"},
            "SLURM": dict(self.slurm),
            "megatron-core takes": dict(self.megatron),
        }


def examine() -> Machine:
    """Look at this machine."""
    versions = {package: installed_version(package) for package in PACKAGES}
    if versions["apex"] != MISSING and not has_apex():
        versions["apex"] = OTHER_APEX
    return Machine(
        versions={"python": platform.python_version(), **versions},
        cpu_cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        cuda=torch.version.cuda,
        gpus=find_gpus(),
        slurm={command: command_version(command) for command in SLURM_COMMANDS},
        megatron={name: fact for name, fact in megatron_facts().items() if name in CHOICES},
    )


CHOICES = ("optimizer", "norm", "layers", "communication")


def installed_version(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def find_gpus() -> tuple[Gpu, ...]:
    """The CUDA devices that torch can use."""
    if not torch.cuda.is_available():
        return ()
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(found.name, (found.major, found.minor), found.total_memory) for found in properties)


def command_version(command: str) -> str:
    """What a SLURM command says of its version."""
    path = shutil.which(command)
    if path is None:
        return MISSING
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{FAILING} does not answer ({type(error).__name__})"
    return result.stdout.strip() or f"{FAILING} fails with exit code {result.returncode}"
