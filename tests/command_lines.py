"""Command lines of the documents, read as their programs do, without running them."""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import typer

from examples.paper_study.__main__ import choose
from examples.paper_study.plan import read_study
from nemo_xtoken.cli.app import UsageError, app
from nemo_xtoken.config_io import load, load_run
from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.launch.cluster import ClusterConfig
from nemo_xtoken.launch.job import JobConfig
from tests.documents import CHECKOUT, FILES, Words

PACKAGE = CHECKOUT / "nemo_xtoken"

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


class WrongError(Exception):
    """A command that would not start as it is written."""


class ParsedArguments(BaseException):
    """Ends a program that has read its arguments."""

    def __init__(self, found: argparse.Namespace) -> None:
        self.found = found


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
