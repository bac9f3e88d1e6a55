"""What the documents say: their commands exist with these arguments, their links lead somewhere, their messages are the
code's own."""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
import typer
import yaml

from examples.paper_study.__main__ import choose
from examples.paper_study.plan import read_study
from nemo_xtoken.cli.app import UsageError, app
from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import load, load_run
from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.launch.cluster import ClusterConfig
from nemo_xtoken.launch.job import JobConfig

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
PACKAGE = CHECKOUT / "nemo_xtoken"
OTHER_CONFIGS = {"bridge.md", "nemo.md"}
"""Documents whose keys are those of Megatron-Bridge and of NeMo, which are not there."""
GAP = "…"
SHORTEST = 12
"""Characters of a quoted message that are not gaps."""

MODEL = "{num_layers: 8, hidden_size: 128, num_attention_heads: 16, ffn_hidden_size: 384}"
A_RUN = f"""
run_dir: run
student: {MODEL}
teachers: [{{name: qwen, checkpoint: qwen_run, model: {MODEL}}}]
data: {{path: data, student_sequence_length: 4096, teacher_sequence_length: 4096}}
parallel: {{data_parallel_size: 8}}
optimizer: {{lr: 1.0e-4}}
train: {{steps: 1000, micro_batch_size: 1, global_batch_size: 768}}
"""
"""The run of documents that show none: on 8 ranks, as their teachers are."""

Words = list[str]


class WrongError(Exception):
    """A command that would not start as it is written."""


class ParsedArguments(BaseException):
    """Ends a program that has read its arguments."""

    def __init__(self, found: argparse.Namespace) -> None:
        self.found = found


def blocks(document: Path, language: str) -> list[str]:
    """The code of a document in one language, block by block."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


bash_blocks = partial(blocks, language="bash")


def inline_code(document: Path) -> list[str]:
    """What stands in backquotes in running text."""
    outside = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [" ".join(quoted.split()) for quoted in re.findall(r"`([^`]+)`", outside)]


HERE_DOCUMENT = re.compile(r"cat > (\S+) <<'(\w+)'\n(.*?)\n\2\n", re.DOTALL)
FILES = {
    name: text for path in DOCUMENTS for block in bash_blocks(path) for name, _, text in HERE_DOCUMENT.findall(block)
}
"""Configs that the documents write, by path."""


def calls(line: str) -> Iterator[Words]:
    """The programs that a line of bash calls, with their arguments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: Words = []
    for word in (*lexer, ";"):
        if word.strip("|&;"):
            words.append(word)
            continue
        if called := called_by(words):
            yield called
        words = []


def called_by(words: Words) -> Words:
    """Without variables that are set before, and without `timeout`; nothing where variables are all."""
    words = list(dropwhile(lambda word: re.match(r"\w+=", word), words))
    if words[:1] == ["timeout"]:
        return list(dropwhile(lambda word: not word.isdigit(), words))[1:]
    return words


PROGRAM_IN_TEXT = re.compile(r"(nemo-xtoken|nemo xtoken|python|torchrun|pytest|(examples|tests)/\S+\.(sh|py))( |$)")


def commands(document: Path) -> Iterator[tuple[Words, bool]]:
    """Each call of a program, with whether it is whole: in running text it may lack arguments."""
    for block in bash_blocks(document):
        for line in HERE_DOCUMENT.sub("", block).replace("\\\n", " ").splitlines():
            for words in calls(line):
                yield words, True
    for quoted in inline_code(document):
        if PROGRAM_IN_TEXT.match(quoted):
            yield shlex.split(re.sub(r"\bN\b", "1", quoted)), False


COMMANDS = [
    pytest.param(words, whole, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS
    for words, whole in commands(document)
]


def check(words: Words, folder: Path) -> None:
    """Reads the arguments of a command as its program does, without running it. Raises WrongError."""
    name = words[0]
    check_files(["", *filter(re.compile(r"(examples|tests|launcher_configs)/[\w./]+\.\w+$").match, words)])
    if name.endswith(".sh"):
        check_script(words)
    elif name.endswith(".py"):
        if words[1:]:
            check_python(["python", *words])
    elif name == "nemo-xtoken":
        check_our_own(words, folder)
    elif name in PROGRAMS:
        PROGRAMS[name](words)
    else:
        raise WrongError(f"{name} is nothing that this test knows")


def check_our_own(words: Words, folder: Path) -> None:
    """The command, its options, and what it changes in a run."""
    try:
        parameters = parse(words)
        overrides = list(parameters.get("overrides") or ())
        if overrides:
            check_overrides(overrides, str(parameters.get("config") or parameters.get("run")), folder)
    except UsageError as error:
        message = getattr(error, "message", "") or "missing"
        raise WrongError(f"{type(error).__name__}: {message}") from error
    except ConfigError as error:
        raise WrongError(str(error)) from error


def parse(words: Words) -> dict[str, Any]:
    """What our program reads from a command line. Raises UsageError."""
    command: Any = typer.main.get_command(app)
    context, words = None, words[1:]
    while True:
        is_group = hasattr(command, "resolve_command")
        context = command.make_context(command.name, list(words), parent=context)
        left = [*getattr(context, "_protected_args", []), *context.args]
        if not is_group or not left:
            return context.params
        _, command, words = command.resolve_command(context, left)


def check_overrides(overrides: Sequence[str], config: str, folder: Path) -> None:
    """`key=value` of a run that the documents write, that is here, or of any; `job.` and `cluster.` of a launch."""
    of_launch = {"job.": (JobConfig, "jobs/train"), "cluster.": (ClusterConfig, "clusters/generic")}
    for prefix, (cls, file) in of_launch.items():
        own = [override.removeprefix(prefix) for override in overrides if override.startswith(prefix)]
        load(cls, CHECKOUT / "launcher_configs" / f"{file}.yaml", own)
    load_run(a_run(config, folder), [override for override in overrides if not override.startswith(tuple(of_launch))])


def a_run(config: str, folder: Path) -> Path:
    """The file of a run by the path that a command gives."""
    if (CHECKOUT / config).is_file():
        return CHECKOUT / config
    path = folder / "run.yaml"
    path.write_text(FILES.get(config, A_RUN))
    return path


def check_python(words: Words) -> argparse.Namespace:
    """A module or script of this repository, by its own parser."""
    by_name = words[1] == "-m"
    name, arguments = (words[2], words[3:]) if by_name else (words[1], words[2:])
    path = CHECKOUT / (name.replace(".", "/") if by_name else name)
    if not any(each.is_file() for each in ([path.with_suffix(".py"), path / "__main__.py"] if by_name else [path])):
        raise WrongError(f"{name} is not there")
    found = read_arguments(
        partial(runpy.run_module, name) if by_name else partial(runpy.run_path, str(path)), arguments
    )
    if name.endswith("bridge.run") and getattr(found, "recipe", None) not in {None, *recipes("bridge")}:
        raise WrongError(f"no recipe {found.recipe}")
    return found


def read_arguments(start: Callable[..., object], arguments: Words) -> argparse.Namespace:
    """What a Python program that is started makes of its arguments; it ends there. Raises WrongError."""

    def refuse(_: argparse.ArgumentParser, message: str) -> NoReturn:
        raise WrongError(message)

    def ending(method: Callable[..., argparse.Namespace]) -> Callable[..., NoReturn]:
        def read(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
            raise ParsedArguments(method(parser, arguments))

        return read

    with ExitStack() as stack:
        for name in ("parse_args", "parse_intermixed_args"):
            method = getattr(argparse.ArgumentParser, name)
            stack.enter_context(mock.patch.object(argparse.ArgumentParser, name, ending(method)))
        stack.enter_context(mock.patch.object(argparse.ArgumentParser, "error", refuse))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, "path", [str(CHECKOUT / "examples"), *sys.path]))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        try:
            start(run_name="__main__")
        except ParsedArguments as end:
            return end.found
    raise WrongError("reads no arguments")


def check_torchrun(words: Words) -> None:
    """The module that it starts."""
    check_python(["python", *words[words.index("-m") :]])


def check_script(words: Words) -> None:
    """A script of this repository; its options stand in the comment at its head."""
    path = CHECKOUT / words[0]
    if not path.is_file() or not os.access(path, os.X_OK):
        raise WrongError(f"{words[0]} is no script here")
    if path == CHECKOUT / "examples/paper_study/run.sh":
        check_study(words[1:])
        return
    head = path.read_text(encoding="utf-8").partition("\nset ")[0]
    for option in (word for word in words[1:] if word.startswith("-")):
        if not re.search(rf"(?<![\w-]){option}(?![\w-])", head):
            raise WrongError(f"{words[0]} has no {option}")


def check_study(arguments: Words) -> None:
    """The study's arguments, and the names in them."""
    found = check_python(["python", "-m", "examples.paper_study", *arguments])
    try:
        choose(read_study(), found.setting, found.loss)
    except XTokenError as error:
        raise WrongError(str(error)) from error


def check_nemo(words: Words) -> None:
    """`nemo xtoken distill`, its recipe and the arguments of that; what comes after is NeMo's own."""
    if words[1:3] != ["xtoken", "distill"]:
        raise WrongError("expected nemo xtoken distill")
    for word in words[3:]:
        if word.startswith("recipe="):
            check_recipe(word.removeprefix("recipe="))
        elif not word.startswith("recipe.") and word not in ("-y", "--help"):
            raise WrongError(f"distill has no {word}")


def check_recipe(text: str) -> None:
    """`NAME` or `NAME(key=value)`."""
    call = ast.parse(text, mode="eval").body
    name = call.func if isinstance(call, ast.Call) else call
    function = recipes("nemo").get(name.id if isinstance(name, ast.Name) else "")
    if function is None:
        raise WrongError(f"no recipe {text}")
    known = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    given = {keyword.arg or "" for keyword in call.keywords} if isinstance(call, ast.Call) else set[str]()
    if given - known:
        raise WrongError(f"no argument {', '.join(given - known)}")


def recipes(home: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file that cannot be imported here."""
    text = (PACKAGE / "integrations" / home / "recipes.py").read_text(encoding="utf-8")
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return {name: node for name, node in found.items() if not name.startswith("_")}


def check_files(words: Words) -> None:
    """Files of this repository."""
    for word in words[1:]:
        if not (CHECKOUT / word).exists():
            raise WrongError(f"{word} is not there")


def check_nothing(words: Words) -> None:
    """What every shell has."""


PROGRAMS: dict[str, Callable[[Words], object]] = {
    "python": check_python,
    "torchrun": check_torchrun,
    "nemo": check_nemo,
    "pytest": check_files,
    **dict.fromkeys(("cat", "echo", "export", "mkdir"), check_nothing),
}


def is_incomplete(error: WrongError) -> bool:
    """Whether a command line only lacks something."""
    return any(word in str(error).lower() for word in ("missing", "are required"))


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
