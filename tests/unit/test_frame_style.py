from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "nemo_xtoken"
FILES = sorted(PACKAGE.rglob("*.py"))


def functions() -> Iterator[tuple[str, int]]:
    """Every function of the package with its number of lines."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{path.relative_to(PACKAGE)}:{node.name}", lines


def test_functions_do_one_step() -> None:
    lengths = dict(functions())
    assert {name: lines for name, lines in lengths.items() if lines > 80} == {}
    assert statistics.median(lengths.values()) <= 15


def test_torch_reads_nothing_but_tensors_from_files() -> None:
    unsafe: list[str] = []
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
        unsafe += [str(path) for call in loads if "weights_only=True" not in map(ast.unparse, call.keywords)]
    assert unsafe == []
