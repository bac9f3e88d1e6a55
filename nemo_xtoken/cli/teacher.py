"""`nemo-xtoken teacher cache` and `teacher check`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nemo_xtoken.cli.console import Json, print_json, stdout, working
from nemo_xtoken.errors import ConfigError

if TYPE_CHECKING:
    from nemo_xtoken.config import RunConfig
    from nemo_xtoken.integrations.megatron import Filled
    from nemo_xtoken.teachers.cache import StoredAs

app = typer.Typer(help="Teachers without a model: what is stored of them.")
STORED_AS = ("bf16", "fp32", "fp8", "top_k", "sampled")


@app.callback()
def _group() -> None:
    """Teachers without a model: what is stored of them."""


@app.command("cache")
def cache(
    config: Annotated[Path, typer.Argument(metavar="RUN", help="A run config in YAML, or the directory of a run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="What to change in it, as for train.")
    ] = None,
    store: Annotated[
        str, typer.Option(help="Hidden states as bf16, fp32 or fp8, or probabilities: top_k or sampled.")
    ] = "bf16",
    count: Annotated[int, typer.Option(min=0, help="top_k: tokens to keep of each row; sampled: draws.")] = 0,
    teacher: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A teacher of the run; by default all of them.")
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Only every N-th shard, from the I-th on: one job of an array.")
    ] = "0/1",
    shard_tokens: Annotated[int, typer.Option(min=1, help="Least tokens of a shard.")] = 65536,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Store a run's teachers for its data, so that it trains without their models. Interrupted, it goes on."""
    from nemo_xtoken.teachers.cache import Storage

    if store not in STORED_AS:
        raise ConfigError(f"--store: expected one of {', '.join(STORED_AS)}, got {store}")
    storage = Storage(stored_as=cast("StoredAs", store), count=count)
    run = _run(config, overrides or [])
    from nemo_xtoken.integrations.megatron import CacheJob, fill_caches

    names = tuple(teacher or ())
    job = CacheJob(storage=storage, teachers=names, part=_part(part), shard_tokens=shard_tokens, seed=seed)
    filled = fill_caches(run, job)
    if filled is None:
        return
    if json:
        print_json({"caches": [result._asdict() for result in filled]})
        return
    for result in filled:
        stdout.print(_line(result), markup=False, soft_wrap=True)


@app.command("check")
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A cache: DATA.teachers/NAME.")],
    json: Json = False,
) -> None:
    """Compare every shard of a cache with its checksum."""
    from nemo_xtoken.teachers.cache import check_shards

    with working("reading the shards"):
        shards = check_shards(directory)
    if json:
        print_json({"directory": str(directory), "shards": shards})
        return
    stdout.print(f"{directory}: {shards:,} shards are as they were written", markup=False, soft_wrap=True)


def _run(config: Path, overrides: list[str]) -> RunConfig:
    from nemo_xtoken.config_io import load_run

    return load_run(config / "config.yaml" if config.is_dir() else config, overrides)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise ConfigError(f"--part: expected I/N with I from 0 to N - 1, such as 0/8, got {text!r}")
    return index, count


def _line(filled: Filled) -> str:
    line = f"{filled.directory}: {filled.tokens:,} tokens, {filled.shards:,} shards, {filled.bytes:,} bytes"
    line += f"; {filled.written:,} shards written by this job"
    return line + (f"; {filled.missing:,} are missing still" if filled.missing else "")
