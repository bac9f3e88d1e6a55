from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = ("nemo_xtoken", "docs", "examples", "tests", "launcher_configs")
UNLISTED = {"__init__.py", "py.typed"}
UNTRACKED = {"__pycache__", "out"}


def tree_of_readme() -> dict[str, str]:
    """Paths of the README's tree with what is said of each; folders end in a slash."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    block = next(
        block for block in re.findall(r"```text\n(.*?)```", readme, re.DOTALL) if block.startswith("nemo_xtoken/")
    )
    paths: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        name, _, description = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        paths["".join(folders)] = description.strip()
    return paths


def real_files() -> set[str]:
    """Every file that the tree has to answer for."""
    found = (path for root in ROOTS for path in (CHECKOUT / root).rglob("*") if path.is_file())
    kept = [path.relative_to(CHECKOUT) for path in found if path.name not in UNLISTED]
    return {str(path) for path in kept if not UNTRACKED.intersection(path.parts)}


def test_the_tree_of_the_readme_is_the_real_tree() -> None:
    listed = set(tree_of_readme())
    whole_folders = {
        path for path in listed if path.endswith("/") and not any(p != path and p.startswith(path) for p in listed)
    }
    named = {path for path in listed if not path.endswith("/") and path.startswith(ROOTS)}
    missing = {path for path in real_files() - named if not path.startswith(tuple(whole_folders))}
    assert missing == set(), "not in the README's tree"
    assert named - real_files() == set(), "only in the README's tree"
    assert [path for path in listed if not (CHECKOUT / path).exists()] == []


def test_every_line_of_the_tree_says_what_the_file_is() -> None:
    assert [path for path, description in tree_of_readme().items() if not description] == []
