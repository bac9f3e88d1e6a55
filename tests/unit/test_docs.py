"""What the documents say: their commands exist, their links lead somewhere, their messages are the code's own."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from nemo_xtoken.cli.app import UsageError, app

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
PACKAGE = CHECKOUT / "nemo_xtoken"
GAP = "…"
SHORTEST = 12
"""Characters of a quoted message that are not gaps."""


def bash_blocks(document: Path) -> list[str]:
    """The commands of a document, block by block."""
    return re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def command_lines(document: Path) -> Iterator[tuple[str, bool]]:
    """Each line that calls the program, with whether it is whole: in running text it may lack arguments."""
    for block in bash_blocks(document):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("nemo-xtoken "):
                yield line.strip(), True
    outside = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for quoted in re.findall(r"`(nemo-xtoken [^`]+)`", outside):
        yield re.sub(r"\bN\b", "1", " ".join(quoted.split())), False


LINES = [(document.name, *line) for document in DOCUMENTS for line in command_lines(document)]


def parse(line: str) -> None:
    """Parses one command line as the program does, without running it. Raises UsageError."""
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context = None
    while True:
        is_group = hasattr(command, "resolve_command")
        context = command.make_context(command.name, list(words), parent=context)
        left = [*getattr(context, "_protected_args", []), *context.args]
        if not is_group or not left:
            return
        _, command, words = command.resolve_command(context, left)


def is_incomplete(error: Exception) -> bool:
    """Whether a command line only lacks something."""
    return "missing" in str(getattr(error, "message", error)).lower() or "MissingParameter" in type(error).__name__


@pytest.mark.parametrize(("document", "line", "whole"), LINES)
def test_every_command_exists_with_its_options(document: str, line: str, whole: bool) -> None:
    wrong = what_is_wrong(line)
    assert wrong is None or (not whole and is_incomplete(wrong)), f"{document}: {line}: {wrong}"


def what_is_wrong(line: str) -> Exception | None:
    """Why the program would not take a command line."""
    try:
        parse(line)
    except UsageError as error:
        return error
    return None


@pytest.mark.parametrize(
    "line", ["nemo-xtoken wander", "nemo-xtoken report x --nonsense", "nemo-xtoken data prepare x --studnet y --out z"]
)
def test_a_command_that_does_not_exist_would_be_seen(line: str) -> None:
    wrong = what_is_wrong(line)
    assert wrong is not None
    assert not is_incomplete(wrong)


def test_enough_commands_are_looked_at() -> None:
    by_document = {name: sum(line[0] == name for line in LINES) for name in {line[0] for line in LINES}}
    assert by_document["README.md"] > 15
    assert by_document["tutorial.md"] > 15


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_and_modules_that_commands_call_are_there(document: Path) -> None:
    text = "\n".join(bash_blocks(document))
    for script in re.findall(r"(?:^|\s)((?:examples|tests|launcher_configs)/[\w./]+\.\w+)", text):
        assert (CHECKOUT / script).is_file(), script
    for module in re.findall(r"-m (nemo_xtoken[\w.]+|tests[\w.]+)", text):
        path = CHECKOUT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def anchors(document: Path) -> set[str]:
    """Headings as links name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def quoted_messages() -> list[str]:
    text = (CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### `(.+)`$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def templates() -> list[str]:
    """Every text in the code, with a gap for what is put into it."""
    found: list[str] = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.append(re.sub(f"{GAP}+", GAP, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", quoted_messages())
def test_every_quoted_message_is_one_that_the_code_has(message: str, templates: list[str]) -> None:
    assert len(message.replace(GAP, "")) >= SHORTEST
    assert any(message in template for template in templates)


def test_a_message_that_has_changed_would_be_seen(templates: list[str]) -> None:
    assert len(quoted_messages()) > 30
    assert not any("another job is training at …; wait for it" in template for template in templates)
