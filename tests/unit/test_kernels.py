from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_xtoken.errors import ConfigError, UnavailableError
from nemo_xtoken.kernels import choice, scatter_columns
from nemo_xtoken.kernels.choice import takes_triton

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install 'nemo-xtoken[kernels]'",
)
COMPILE = """
import inspect
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nemo_xtoken.kernels.programs import run_mean, softmax_statistics, sparse_projection

POINTERS = {
    "starts": "*i32", "sources": "*i32", "long_targets": "*i32", "places": "*i32", "rows": "*i64", "columns": "*i64",
    "labels": "*i64", "start": "*i64", "end": "*i64", "runs": "*i64",
}
NUMBERS = {
    "num_targets": "i32", "num_rows": "i32", "num_entries": "i32", "num_chosen": "i32", "width": "i32",
    "stride": "i32", "x_stride": "i32", "y_stride": "i32", "y_grad_stride": "i32", "temperature": "fp32",
}
SIZES = {"SHORT": 8, "ROWS": 4, "BLOCK": 256}
LOGITS = {"x", "y", "y_grad", "logits", "logits_grad"}


def assembly(program, logits, absent):
    names = list(inspect.signature(program.fn).parameters)
    constants = {name: SIZES.get(name) for name in names if name in SIZES or name in absent}
    types = POINTERS | NUMBERS
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{logits}" if name in LOGITS else "*fp32")
        for name in names
    }
    return compile(ASTSource(program, signature, constants), target=GPUTarget("cuda", 90, 32)).asm["ptx"]


PROGRAMS = [
    (sparse_projection._sum_short, ()), (sparse_projection._sum_long, ()), (sparse_projection._entry_products, ()),
    (softmax_statistics._row_statistics, ()), (softmax_statistics._logits_gradient, ()),
    (softmax_statistics._row_statistics, ("places", "labels", "label_values", "chosen")),
    (softmax_statistics._logits_gradient, ("places", "labels", "label_grad", "chosen_grad")),
    (run_mean._run_means, ()), (run_mean._run_gradient, ()),
    (run_mean._run_means, ("log_normaliser",)), (run_mean._run_gradient, ("log_normaliser", "partial")),
]
for program, absent in PROGRAMS:
    assert "sm_90" in assembly(program, "bf16", absent)
"""


@NEEDS_TRITON
def test_every_program_compiles_for_an_h100_without_one(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    script = tmp_path / "compile_programs.py"
    script.write_text(COMPILE, encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_torch_is_taken_on_the_cpu_and_where_it_is_asked_for() -> None:
    assert not takes_triton("auto", torch.zeros(1))
    assert not takes_triton("torch", torch.zeros(1))


def test_triton_where_it_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda: False)
    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UnavailableError, match=r"not installed: pip install 'nemo-xtoken\[kernels\]'.*'torch'"):
        scatter_columns(torch.ones(1, 1), index, index, torch.ones(1), 1, implementation="triton")


def test_triton_refuses_what_it_cannot_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UnavailableError, match=r"got torch\.float64"):
        takes_triton("triton", torch.zeros(1, dtype=torch.float64))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UnavailableError, match="needs CUDA tensors, got one on cpu"):
        takes_triton("triton", torch.zeros(1))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, torch, triton, got 'cuda'"):
        takes_triton("cuda", torch.zeros(1))  # pyright: ignore[reportArgumentType]


def test_the_room_is_there_without_triton() -> None:
    script = "import sys; sys.modules['triton'] = None; import nemo_xtoken.kernels"
    assert subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, check=False).returncode == 0
