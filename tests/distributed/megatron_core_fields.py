"""What megatron-core's releases call FP8: the fields of TransformerConfig and the names of recipes, read from wheels.

    pip download --no-deps --python-version 3.12 --only-binary :all: megatron-core==0.17.1
    python -m tests.distributed.megatron_core_fields *.whl > tests/distributed/megatron_core_fields.json

Nothing is imported or installed: the source of a wheel is parsed.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

CONFIG, ENUMS = "megatron/core/transformer/transformer_config.py", "megatron/core/enums.py"
TABLE = Path(__file__).with_suffix(".json")
PARTS_OF_NAMES = ("fp8", "in_bf16", "layers_bf16")


def fields_of(wheel: Path) -> dict[str, Any]:
    """`fields`: what a field that has to do with FP8 may hold; `recipes`: the members of Fp8Recipe."""
    with zipfile.ZipFile(wheel) as archive:
        config, enums = (ast.parse(archive.read(name)) for name in (CONFIG, ENUMS))
    fields = {
        node.target.id: ast.unparse(node.annotation)
        for node in _class(config, "TransformerConfig").body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    recipes = [
        node.value.value
        for node in _class(enums, "Fp8Recipe").body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return {"fields": {name: kind for name, kind in fields.items() if is_of_fp8(name)}, "recipes": recipes}


def is_of_fp8(field: str) -> bool:
    """Whether a field of TransformerConfig has to do with FP8."""
    return any(part in field for part in PARTS_OF_NAMES)


def _class(module: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)


def main(wheels: list[str]) -> None:
    """Print the table of these wheels, by version."""
    table = {Path(wheel).name.split("-")[1]: fields_of(Path(wheel)) for wheel in sorted(wheels)}
    sys.stdout.write(json.dumps({"source": f"{CONFIG} and {ENUMS} of PyPI's wheels", "versions": table}, indent=1))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
