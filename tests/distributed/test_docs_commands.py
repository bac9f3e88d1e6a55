"""The commands of the documents, run one after another as a reader would."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_docs import CHECKOUT, bash_blocks

READ_IN_THIS_ORDER = ("tutorial.md", "choosing.md")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_documents_run(real_tokenizers: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    tokenizers = tmp_path / "tutorial" / "tokenizers"
    tokenizers.mkdir(parents=True)
    for name in ("qwen", "cl100k_base"):
        shutil.copy(real_tokenizers / f"{name}.tiktoken", tokenizers)
    blocks = [block for name in READ_IN_THIS_ORDER for block in bash_blocks(CHECKOUT / "docs" / name)]
    script = tmp_path / "commands.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(blocks))
    with (tmp_path / "log").open("w") as log:
        variables = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        finished = subprocess.run(
            ["bash", str(script)], cwd=tmp_path, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    told = (tmp_path / "log").read_text()
    assert finished.returncode == 0, told[-3000:]
    assert "P-KL, because a loss on common tokens would suppress" in told
    assert "resuming tutorial/distilled after step 15" in told
    pages = ("w.html", "data/student/report.html", "distilled/report.html", "comparison.html", "losses.html")
    assert [page for page in pages if not (tmp_path / "tutorial" / page).is_file()] == []
    assert (tmp_path / "tutorial" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_no_command_of_the_documents_is_left_out() -> None:
    """Documents without commands of their own, and the README, whose commands stand for the reader's own files."""
    with_commands = {path.name for path in (CHECKOUT / "docs").glob("*.md") if bash_blocks(path)}
    assert with_commands == set(READ_IN_THIS_ORDER)
