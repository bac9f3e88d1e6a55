"""The Python of docs/bridge.md runs, with a tiny model and data in the place of a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bridge import tiny
from tests.conftest import CHECKOUT
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.timeout(240)


def blocks() -> list[str]:
    """The page's Python, block by block."""
    text = (CHECKOUT / "docs" / "bridge.md").read_text(encoding="utf-8")
    return [part.partition("```")[0] for part in text.split("```python\n")[1:]]


def test_a_config_of_the_users_is_extended_and_trained(folder: Path) -> None:
    (block,) = blocks()
    stand_ins = {"Qwen/Qwen3-4B": str(folder / "qwen3"), '"data"': f'"{folder / "data"}"', "4096": "32", "5120": "48"}
    for written, ours in stand_ins.items():
        assert written in block
        block = block.replace(written, ours)
    run_ranks(1, execute, folder, block, timeout=150)
    assert (folder / "readme" / "latest_checkpointed_iteration.txt").read_text() == "2"


def execute(folder: Path, block: str) -> None:
    """On one rank, whose own config has two steps."""
    config = tiny.student_config(folder, "readme", tp=1, pp=1, steps=2, train={})
    names: dict[str, Any] = {"your_config_container": config}
    exec(block, names)
