"""Fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from nemo_xtoken import projection, tokenizers
from nemo_xtoken.projection import ProjectionMatrix
from nemo_xtoken.tokenizers import Tokenizer
from tests.fetch_test_tokenizers import specs

CHECKOUT = Path(__file__).resolve().parent.parent
CI = os.environ.get("CI") == "true"

settings.register_profile("tests", deadline=None, derandomize=CI)  # a busy machine is no reason to fail
settings.load_profile("tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the tests of another suite than the base one, unless they are asked for by name."""
    tests = config.rootpath / "tests"
    has_lock = (tests / "locks" / f"{collection_path.name}.txt").exists()
    if collection_path.parent != tests or not (has_lock or collection_path.name == "slurm"):
        return None
    asked = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(collection_path) for path in asked) else True


if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # threads of its own do not survive a fork, and the ranks of tests are forked

HAS_CUDA = torch.cuda.device_count() > 0  # unlike is_available, leaves CUDA alone, so that tests may fork
if not HAS_CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Where Triton programs run: in the interpreter or, marked `gpu`, on a CUDA device; skips where neither is."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'nemo-xtoken[kernels]'")
    if request.param == "cuda" and not HAS_CUDA:
        pytest.skip("no CUDA device")
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the programs are compiled for the CUDA device here; TRITON_INTERPRET=1 interprets them")
    return request.param


TOKENIZERS = CHECKOUT / ".cache" / "tokenizers"


@pytest.fixture(scope="session")
def real_tokenizers() -> Path:
    """A folder with qwen.tiktoken and cl100k_base.tiktoken; skips where they cannot be fetched, but fails under CI."""
    fetch(CHECKOUT / "examples" / "fetch_tokenizers.py")
    return TOKENIZERS


@pytest.fixture(scope="session")
def all_tokenizers(real_tokenizers: Path) -> Mapping[str, str]:
    """Published tokenizers of every family, name -> spec; skips where they cannot be fetched, but fails under CI."""
    fetch(CHECKOUT / "tests" / "fetch_test_tokenizers.py")
    return {
        "cl100k": f"{real_tokenizers / 'cl100k_base.tiktoken'}?pattern=cl100k",
        "qwen": f"{real_tokenizers / 'qwen.tiktoken'}?pattern=qwen",
        "byt5": "bytes",
        **specs(TOKENIZERS),
    }


class LlamaPair(NamedTuple):
    """Llama 3 as the student of a published teacher, W, and the CPU-seconds that building it took."""

    student: Tokenizer
    teacher: Tokenizer
    matrix: ProjectionMatrix
    cpu_seconds: float


@pytest.fixture(scope="session")
def llama_pair(all_tokenizers: Mapping[str, str]) -> Callable[[str], LlamaPair]:
    """The pair of a teacher of that name, built once."""
    student = tokenizers.load(all_tokenizers["llama3"])

    @cache
    def pair(name: str) -> LlamaPair:
        teacher = tokenizers.load(all_tokenizers[name])
        start = time.process_time()
        matrix = projection.build(student, teacher)
        return LlamaPair(student, teacher, matrix, time.process_time() - start)

    return pair


@pytest.fixture(scope="session")
def model_tokenizers() -> Path:
    """A folder with those of Llama 3.1 and Qwen 3, as Hugging Face models have them; skips or fails like the others."""
    fetch(CHECKOUT / "tests" / "fetch_test_tokenizers.py", "--of-models")
    return TOKENIZERS


def fetch(script: Path, *options: str) -> None:
    """Run a script that fetches tokenizers into TOKENIZERS."""
    command = [sys.executable, str(script), str(TOKENIZERS), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        give_up = pytest.fail if CI else pytest.skip
        give_up(f"could not fetch the tokenizers: {last_line}")
