"""These tests run Megatron-Bridge on CPU: its device layer comes first, before anything imports megatron."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from nemo_xtoken.integrations.bridge import cpu_device

warnings.filterwarnings("ignore")
cpu_device.install()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, tokenizers, data and W."""
    from tests.bridge import tiny

    folder = tmp_path_factory.mktemp("bridge")
    tiny.make_all(folder)
    return folder


@pytest.fixture(scope="session")
def curve(folder: Path) -> list[dict[str, float]]:
    """20 steps on one rank, saved as `folder / "one_rank"`."""
    from tests.bridge import tiny

    return tiny.run(folder, "one_rank")
