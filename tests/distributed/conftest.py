"""Distributed tests run real megatron-core on CPU: the device layer comes first, before anything imports megatron."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from nemo_xtoken.integrations.megatron import cpu_device

warnings.filterwarnings("ignore", module="megatron")
cpu_device.install()


@pytest.fixture(scope="session")
def trained_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, W and a trained teacher; not to be changed."""
    from nemo_xtoken.integrations.megatron import launch
    from tests.distributed import toy

    folder = tmp_path_factory.mktemp("trained_toy")
    toy.make_data(folder)
    launch(toy.teacher_run(folder))
    return folder


@pytest.fixture(scope="module")
def toy_folder(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it for the tests of a module."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(trained_toy, folder, dirs_exist_ok=True)
    return folder
