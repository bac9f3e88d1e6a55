from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def banned(path: str, line: str) -> bool:
    """Whether ruff's configuration refuses this import in this file."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", path, "-"]
    return (
        subprocess.run(command, cwd=CHECKOUT, input=f"{line}\n", text=True, capture_output=True, check=False).returncode
        == 1
    )


@pytest.mark.parametrize(
    ("path", "line", "refused"),
    [
        ("nemo_xtoken/losses/x.py", "import torch.distributed as dist", True),
        ("nemo_xtoken/losses/x.py", "from torch import distributed", True),
        ("nemo_xtoken/losses/x.py", "from torch.distributed import all_reduce", True),
        ("nemo_xtoken/parallel/x.py", "import torch.distributed as dist", False),
        ("nemo_xtoken/teachers/x.py", "import torch.distributed as dist", False),
        ("nemo_xtoken/integrations/megatron/x.py", "import torch.distributed as dist", False),
        ("nemo_xtoken/data/x.py", "from megatron.core import parallel_state", True),
        ("nemo_xtoken/report/x.py", "import nemo.collections.llm", True),
        ("nemo_xtoken/cli/x.py", "import modelopt", True),
        ("nemo_xtoken/integrations/megatron/x.py", "from megatron.core import parallel_state", False),
        ("nemo_xtoken/losses/x.py", "import triton", True),
        ("nemo_xtoken/kernels/x.py", "import triton.language as tl", True),
        ("nemo_xtoken/kernels/programs/x.py", "import triton.language as tl", False),
        ("nemo_xtoken/losses/x.py", "import torch", False),
    ],
)
def test_ruff_refuses_an_import_outside_its_room(path: str, line: str, refused: bool) -> None:
    assert banned(path, line) == refused


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("errors.py", "import nemo_xtoken.config", "nemo_xtoken.errors -> nemo_xtoken.config"),
        ("losses/__init__.py", "import nemo_xtoken.data.manifest", "nemo_xtoken.losses -> nemo_xtoken.data.manifest"),
        ("alignment/__init__.py", "import nemo_xtoken.losses", "nemo_xtoken.alignment -> nemo_xtoken.losses"),
        ("parallel/__init__.py", "import megatron.core", "nemo_xtoken.parallel -> megatron"),
        ("parallel/__init__.py", "import nemo_xtoken.teachers", "nemo_xtoken.parallel -> nemo_xtoken.teachers"),
        ("parallel/__init__.py", "import triton", "nemo_xtoken.parallel -> triton"),
        ("attic.py", "", "nemo_xtoken.attic"),
    ],
)
def test_the_import_contract_refuses_what_breaks_the_order(tmp_path: Path, file: str, line: str, told: str) -> None:
    shutil.copytree(CHECKOUT / "nemo_xtoken", tmp_path / "nemo_xtoken", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    with (tmp_path / "nemo_xtoken" / file).open("a") as module:
        module.write(f"\n{line}\n")
    command = [str(LINT_IMPORTS), "--no-cache"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert told in " ".join(result.stdout.split())
