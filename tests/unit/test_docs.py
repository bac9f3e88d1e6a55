"""What the documents say: their commands exist with these arguments, their links lead somewhere, their messages are the
code's own."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import ConfigError
from tests.command_lines import MODEL, PACKAGE, WrongError, a_run, check, check_overrides, is_incomplete
from tests.documents import CHECKOUT, DOCUMENTS, FILES, Words, blocks, calls, commands, inline_code

OTHER_CONFIGS = {"bridge.md", "nemo.md"}
"""Documents whose keys are those of Megatron-Bridge and of NeMo, which are not there."""
GAP = "…"
SHORTEST = 12
"""Characters of a quoted message that are not gaps."""


COMMANDS = [
    pytest.param(words, whole, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS
    for words, whole in commands(document)
]


@pytest.mark.parametrize(("words", "whole"), COMMANDS)
def test_every_command_exists_with_its_arguments(words: Words, whole: bool, tmp_path: Path) -> None:
    try:
        check(words, tmp_path)
    except WrongError as error:
        if whole or not is_incomplete(error):
            raise


@pytest.mark.parametrize(
    "line",
    [
        "nemo-xtoken wander",
        "nemo-xtoken report x --nonsense",
        "nemo-xtoken data prepare x --studnet y --out z",
        "nemo-xtoken plan examples/plan_nothing.yaml --gpus 16",
        "nemo-xtoken train run.yaml train.stesp=20",
        "nemo-xtoken train tutorial/student.yaml teachers.1.kind=cached",
        "nemo-xtoken launch run.yaml --cluster x --job y job.nods=4",
        "timeout -s TERM 9 nemo-xtoken wander",
        "A=b nemo-xtoken doctor || nemo-xtoken wander",
        "python examples/make_text.py out --teachers 800",
        "python examples/make_texts.py out",
        "python -m tests.benchmarks.bench_losses --part numeral",
        "tests/benchmarks/bench_peers.py --repeat few",
        "torchrun --nproc-per-node 8 -m nemo_xtoken.integrations.bridge.run llama_from_nowhere",
        "nemo xtoken distil recipe=tiny_cpu",
        "nemo xtoken distill recipe=tiny_gpu",
        "nemo xtoken distill 'recipe=tiny_cpu(precision=\"fp8\")'",
        "examples/paper_study/run.sh run --loss gould",
        "examples/paper_study/run.sh walk",
        "examples/quickstart.sh --fast",
        "examples/slowstart.sh",
        "tests/benchmarks/bench_nothing.py",
        "tests/run.sh --al",
        "pytest tests/unit/test_nothing.py",
        "wander about",
    ],
)
def test_a_command_that_is_wrong_would_be_seen(line: str, tmp_path: Path) -> None:
    *_, words = calls(line)
    with pytest.raises(WrongError) as caught:
        check(words, tmp_path)
    assert not is_incomplete(caught.value)


def test_enough_commands_are_looked_at() -> None:
    names = [str(each.id) for each in COMMANDS]
    assert sum(name.startswith("README.md: ") for name in names) > 25
    assert sum(name.startswith("tutorial.md: ") for name in names) > 25


def runs_in_yaml() -> list[Any]:
    """Runs, or parts of one, that documents show or write."""
    shown = [(path.name, text) for path in DOCUMENTS for text in blocks(path, "yaml")]
    return [pytest.param(text, id=name) for name, text in (*shown, *FILES.items())]


def check_part(text: str, folder: Path) -> RunConfig:
    """A run, or part of one or of a teacher in it over a whole run. Raises ConfigError."""
    part = yaml.safe_load(text.replace("{...}", MODEL))
    if "run_dir" in part:
        (folder / "whole.yaml").write_text(text)
        return load_run(folder / "whole.yaml")
    if "loss" in part:
        part = {"teachers": [{"name": "qwen", "checkpoint": "qwen_run", "model": yaml.safe_load(MODEL), **part}]}
    over = folder / "part.yaml"
    over.write_text(yaml.safe_dump(part))
    return load_run(a_run("any", folder), (), [over])


@pytest.mark.parametrize("text", runs_in_yaml())
def test_yaml_of_the_documents_is_that_of_a_run(text: str, tmp_path: Path) -> None:
    check_part(text, tmp_path)


@pytest.mark.parametrize(
    "text", ["losses: {mode: p_kl}", "loss: {mode: p_lk}", "teachers: [{name: qwen, model: {...}, kin: x}]"]
)
def test_yaml_that_is_wrong_would_be_seen(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        check_part(text, tmp_path)


def overrides_in_text() -> list[Any]:
    """`key=value` in running text, of runs of our own loop."""
    texts = [
        (path.name, text.strip("'"))
        for path in DOCUMENTS
        if path.name not in OTHER_CONFIGS
        for text in inline_code(path)
    ]
    found = [
        (name, text) for name, text in texts if re.fullmatch(r"[a-z]\w*(\.\w+)*=[^…]+", text) and text != "key=value"
    ]
    return [pytest.param(text, id=f"{name}: {text}") for name, text in found]


@pytest.mark.parametrize("override", overrides_in_text())
def test_overrides_in_text_are_keys_of_a_run(override: str, tmp_path: Path) -> None:
    check_overrides([override], "any", tmp_path)


def test_an_override_that_is_wrong_would_be_seen(tmp_path: Path) -> None:
    assert len(overrides_in_text()) > 3
    with pytest.raises(ConfigError):
        check_overrides(["teachers.0.loss.mod=h_kl"], "any", tmp_path)


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
