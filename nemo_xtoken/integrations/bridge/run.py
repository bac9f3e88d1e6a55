"""`python -m nemo_xtoken.integrations.bridge.run RECIPE key=value ...`: a recipe, started.

    torchrun --nproc-per-node 8 -m nemo_xtoken.integrations.bridge.run llama32_1b_from_qwen3_4b_8gpu data.path=DIR
    srun python -m nemo_xtoken.integrations.bridge.run RECIPE ...    with MASTER_ADDR and MASTER_PORT set
    python -m nemo_xtoken.integrations.bridge.run --device cpu tiny_cpu student=DIR teacher=DIR data.path=DIR

Keys that are arguments of the recipe go to it; all others change what it returns. `--check N` only checks the config
and its layout on N ranks; `--list` names the recipes; both do without a GPU. On the CPU and outside of a job every rank
is a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from nemo_xtoken.errors import ConfigError, UnavailableError, XTokenError
from nemo_xtoken.integrations.megatron.launcher import rank_of_this_process
from nemo_xtoken.integrations.megatron.local_ranks import Task, run_locally

ROOM = "nemo_xtoken.integrations.bridge"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog=f"python -m {ROOM}.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="one of --list")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--check", type=int, metavar="N", help="check the config and its layout on N ranks, and end")
    parser.add_argument("--list", action="store_true", help="name the recipes, and end")
    options = parser.parse_intermixed_args(arguments)
    try:
        return _run(options)
    except XTokenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1


def _run(options: argparse.Namespace) -> int:
    only_looks = options.list or options.recipe is None or options.check is not None
    choose_device("cpu" if only_looks and not torch.cuda.is_available() else options.device)
    if options.list or options.recipe is None:
        recipes = _recipes()
        width = max(map(len, recipes)) + 2
        for name, function in recipes.items():
            sys.stdout.write(f"{name:{width}}{(function.__doc__ or '').partition(chr(10))[0]}\n")
        return 0 if options.list else 2
    config = configured(options.recipe, options.overrides)
    if options.check is not None:
        dp_size = importlib.import_module(f"{ROOM}.arithmetic").check_layout(config, options.check)
        sys.stdout.write(f"{options.recipe}: the layout comes out even, data parallel size {dp_size}\n")
        return 0
    _start(options, config)
    return 0


def _start(options: argparse.Namespace, config: Any) -> None:
    check_layout = importlib.import_module(f"{ROOM}.arithmetic").check_layout
    if rank_of_this_process() is not None:
        check_layout(config, int(os.environ["WORLD_SIZE"]))
        importlib.import_module(f"{ROOM}.distillation").pretrain(config)
        return
    if options.device != "cpu":
        raise ConfigError("start it as a job: torchrun --nproc-per-node N -m ..., or srun; or set --device cpu")
    model = config.model
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    check_layout(config, ranks)
    run_locally(Task(f"{ROOM}.run", "run_rank", (options.recipe, tuple(options.overrides)), "cpu"), ranks)


def run_rank(recipe: str, overrides: Sequence[str], init_method: str) -> None:
    """Train as the rank of a job on this machine that the environment names."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=init_method, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    try:
        importlib.import_module(f"{ROOM}.distillation").pretrain(configured(recipe, overrides))
    except SystemExit as end:  # Bridge's way to stop at exit_interval, exit_duration_in_mins or a signal
        if end.code:
            raise XTokenError(f"Megatron-Bridge ended the run with exit code {end.code}") from end
    finally:
        dist.destroy_process_group()


def choose_device(device: str) -> None:
    """Get this process ready to import Bridge. Raises UnavailableError where it is not installed or can't be used."""
    try:
        if device == "cpu":
            importlib.import_module(f"{ROOM}.cpu_device").install()
        importlib.import_module("megatron.bridge")
    except ImportError as error:
        raise UnavailableError(
            f"Megatron-Bridge can't be imported ({error}); pip install 'nemo-xtoken[bridge]', and on a GPU Transformer "
            "Engine, or take NVIDIA's container"
        ) from error


def configured(recipe: str, overrides: Sequence[str]) -> Any:
    """The config of a recipe with overrides. Raises ConfigError for a recipe or a key that there is none of."""
    recipes = _recipes()
    if recipe not in recipes:
        raise ConfigError(f"there is no recipe {recipe!r}; expected one of {', '.join(recipes)}")
    parameters = inspect.signature(recipes[recipe]).parameters
    pairs = {text: text.partition("=") for text in overrides}
    for text, (_, equals, _value) in pairs.items():
        if not equals:
            raise ConfigError(f"override {text!r}: expected key=value, such as train.train_iters=100")
    chosen = {key: _value_for(parameters[key], value) for key, _, value in pairs.values() if key in parameters}
    config = recipes[recipe](**chosen)
    rest = [text for text, (key, _, _value) in pairs.items() if key not in parameters]
    return importlib.import_module(f"{ROOM}.overrides").override(config, rest)


def _value_for(parameter: inspect.Parameter, text: str) -> Any:
    if not isinstance(parameter.default, int):
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{parameter.name}: expected an integer, got {text!r}") from error


def _recipes() -> Any:
    return importlib.import_module(f"{ROOM}.recipes").RECIPES


if __name__ == "__main__":
    sys.exit(main())
