"""Bridge on GPUs: NCCL, Transformer Engine's layers, FP8 and, where there are two, two ranks. It has not run yet."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from tests.bridge.on_gpu import STUDENT, TEACHER, Job
from tests.conftest import CHECKOUT

pytestmark = pytest.mark.timeout(580)

Lines = list[dict[str, float]]
DEVICES = torch.cuda.device_count()
RECIPES = ("delayed", "current", "blockwise", "mxfp8")
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
}
"""Products of which each side is a multiple of 128 on two ranks, too, as FP8 in blocks needs it."""


def needs(count: int) -> Any:
    return [pytest.mark.gpu, pytest.mark.skipif(count > DEVICES, reason=f"needs {count} CUDA devices, has {DEVICES}")]


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    """Under `folder`: models that are wide enough for FP8, with the tokenizers of `llama` and `qwen3`."""
    torch.manual_seed(5)
    models = {(STUDENT, "llama"): LlamaConfig(vocab_size=336, **SHAPE)}
    models[TEACHER, "qwen3"] = Qwen3Config(vocab_size=304, **SHAPE)  # type: ignore[assignment]
    for (name, tokenizer), config in models.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        for path in (folder / tokenizer).glob("*token*"):
            shutil.copy(path, folder / name)
    return folder


def curve(folder: Path, job: Job) -> Lines:
    """The losses of a job in processes of their own: this one answers for CUDA with the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.ranks)]
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.bridge.on_gpu", str(folder), job.text()],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.returncode and said and "compute capability" in said[0]:
        pytest.skip(said[0])
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / f"{job.name}.json").read_text(encoding="utf-8"))


def assert_near(lines: Lines, others: Lines, rel: float) -> None:
    assert len(lines) == len(others) > 0
    for line, other in zip(lines, others, strict=True):
        for name in ("loss", "ce", "kd"):
            assert line[name] == pytest.approx(other[name], rel=rel), name


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs(1))])
def test_the_curve_is_that_of_the_cpu(wide: Path, device: str) -> None:
    found = curve(wide, Job(name="one_gpu", device=device))
    assert_near(found, curve(wide, Job(name="one_cpu", device="cpu")), 0.02)


@pytest.mark.parametrize("cut", [pytest.param(cut, marks=needs(2)) for cut in ("tp", "pp", "cp")])
def test_two_ranks_over_nccl_have_the_curve_of_one(wide: Path, cut: str) -> None:
    one = Job(name=f"one_of_{cut}")
    assert_near(curve(wide, replace(one, name=f"two_{cut}", **{cut: 2})), curve(wide, one), 0.02)


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=needs(1)) for recipe in RECIPES])
def test_a_student_in_fp8_learns_nearly_the_same(wide: Path, recipe: str) -> None:
    found = curve(wide, Job(name=f"student_{recipe}", student_fp8=recipe))
    plain = curve(wide, Job(name=f"student_{recipe}_plain"))
    assert_near(found, plain, 0.03)
    assert found != plain


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=needs(1)) for recipe in RECIPES[1:]])
def test_a_teacher_in_fp8_teaches_nearly_the_same(wide: Path, recipe: str) -> None:
    found = curve(wide, Job(name=f"teacher_{recipe}", teacher_fp8=recipe))
    plain = curve(wide, Job(name=f"teacher_{recipe}_plain"))
    assert_near(found, plain, 0.03)
    assert found[0]["kd"] != plain[0]["kd"]


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=needs(2)) for recipe in RECIPES])
def test_two_ranks_in_fp8_have_the_curve_of_one(wide: Path, recipe: str) -> None:
    two = curve(wide, Job(name=f"two_{recipe}", tp=2, student_fp8=recipe))
    assert_near(two, curve(wide, Job(name=f"two_{recipe}_one", student_fp8=recipe)), 0.02)
