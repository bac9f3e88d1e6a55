"""A real SLURM of two nodes on this machine; what comes up once serves all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_xtoken.config import RunConfig
from nemo_xtoken.integrations.megatron import launch
from tests.conftest import CHECKOUT, CI
from tests.distributed import toy
from tests.slurm.jobs import run_of

CLUSTER = CHECKOUT / "tests" / "slurm" / "cluster.sh"


@pytest.fixture(scope="session", autouse=True)
def slurm() -> Iterator[None]:
    """The cluster, named by SLURM_CONF; skips where it can't be started, but fails under CI."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        reason = f"needs root and Debian's slurm-wlm (missing: {', '.join(missing) or 'root'})"
        pytest.fail(reason) if CI else pytest.skip(reason)
    # Short, for the path of a socket has 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="slurm-")
    try:
        subprocess.run([CLUSTER, "up", folder], check=True, timeout=100)
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        yield
    finally:
        subprocess.run([CLUSTER, "down", folder], check=True, timeout=100)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W and a trained teacher."""
    folder = tmp_path_factory.mktemp("toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    return folder


@pytest.fixture(scope="session")
def uninterrupted(prepared: Path) -> RunConfig:
    """The run that no accident befell, on this machine without SLURM."""
    run = run_of(prepared, "uninterrupted", 300)
    launch(run)
    return run
