"""Fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

CHECKOUT = Path(__file__).resolve().parent.parent
CI = os.environ.get("CI") == "true"

settings.register_profile("tests", deadline=None, derandomize=CI)  # a busy machine is no reason to fail
settings.load_profile("tests")


@pytest.fixture(scope="session")
def real_tokenizers() -> Path:
    """A folder with qwen.tiktoken and cl100k_base.tiktoken; skips where they cannot be fetched, but fails under CI."""
    folder = CHECKOUT / ".cache" / "tokenizers"
    command = [sys.executable, str(CHECKOUT / "examples" / "fetch_tokenizers.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        give_up = pytest.fail if CI else pytest.skip
        give_up(f"could not fetch the tokenizers: {last_line}")
    return folder
