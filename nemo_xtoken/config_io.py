"""Run configs from YAML and `key=value` overrides, and back. Nothing unknown, missing or mistyped gets through."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.whole_file import write_whole

T = TypeVar("T")

_EXPERTS = "models with experts, and expert parallelism, are not in this version: their layers here are dense"
_REFUSED = {"expert_model_parallel_size": _EXPERTS, "num_moe_experts": _EXPERTS}
"""Megatron's keys that one would look for, and why they are not there."""

_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def load_run(path: str | Path, overrides: Sequence[str] = (), files: Sequence[str | Path] = ()) -> RunConfig:
    """Reads a run from a YAML file, with `key=value` overrides such as `teachers.0.loss.mode=h_kl` or `teachers=[]`.

    The keys of further files come over those of the first. Interpolations (`${data.path}`, `${oc.env:HOME}`) are
    resolved after the overrides. Raises ConfigError.
    """
    return load(RunConfig, path, overrides, files)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = (), files: Sequence[str | Path] = ()) -> T:
    """Reads a config dataclass from YAML files as `load_run` does. Raises ConfigError."""
    tree = _read_yaml(Path(path))
    for file in files:
        tree.merge_with(_read_yaml(Path(file)))
    for override in overrides:
        apply_override(tree, override)
    try:
        data = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{path}: {key}{_first_line(error)}") from error
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_run(config: RunConfig, path: str | Path) -> None:
    """Writes a run as YAML that `load_run` reads back to an equal config; the file appears whole or not at all."""
    write_whole(Path(path), OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and scalars: what YAML and JSON can hold."""
    return cast("dict[str, Any]", _plain(config))


def from_dict(cls: type[T], data: object, where: str = "") -> T:
    """Builds a config dataclass from plain data; errors (ConfigError) begin with `where`, its dotted place."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'config'}: expected keys of {cls.__name__}, got {_show(data)}")
    values = {str(key): value for key, value in cast("Mapping[object, object]", data).items()}
    fields = {field.name: field for field in dataclasses.fields(cast("Any", cls))}
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {_join(where, key)}; {_nearest_key(cls, key, where)}")
    missing = [_join(where, name) for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}; set it in the file or as {missing[0]}=VALUE")
    hints = typing.get_type_hints(cls)
    arguments = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def differences(a: T, b: T) -> list[str]:
    """Dotted keys in which two configs differ, in their order; a list of another length counts as one key."""
    return list(_differences(_plain(a), _plain(b), ""))


def flattened(config: RunConfig) -> dict[str, str]:
    """Every value of a run as YAML would show it, by its dotted key; an empty list or mapping is a value of its own."""
    return dict(_flattened(_plain(config), ""))


def _flattened(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        items = [(str(key), entry) for key, entry in cast("dict[Any, Any]", value).items()]
    elif isinstance(value, list) and value:
        items = [(str(number), entry) for number, entry in enumerate(cast("list[Any]", value))]
    else:
        yield where, value if isinstance(value, str) and value else json.dumps(value)
        return
    for key, entry in items:
        yield from _flattened(entry, _join(where, key))


def _read_yaml(path: Path) -> DictConfig:
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; expected a config in YAML") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: expected keys and values at the top, got a list")
    return tree


def apply_override(tree: DictConfig, override: str) -> None:
    """Set one `key=value` in a tree, in place. Raises ConfigError for what is no override, or has no place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as optimizer.lr=1e-3")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; quote it") from error
    try:
        if "-" in {part[:1] for part in key.split(".")}:
            raise IndexError("list entries count from 0")
        OmegaConf.update(tree, key, cast("dict[str, Any]", value)["value"], merge=False, force_add=True)
    except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"override {override!r}: there is no place {key}: {_first_line(error)}") from error


def _convert(hint: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return from_dict(cast("type[object]", hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _convert(inner, value, where)
    if origin is Literal:
        return _choice(arguments, value, where)
    if origin is tuple:
        return _sequence(arguments[0], value, where)
    if origin is Mapping:
        return _mapping(arguments[1], value, where)
    return _scalar(hint, value, where)


def _choice(choices: tuple[str, ...], value: object, where: str) -> str:
    if value in choices:
        return cast("str", value)
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{where}: expected one of {', '.join(choices)}, got {_show(value)}{hint}")


def _sequence(item: Any, value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list, got {_show(value)}")
    return tuple(_convert(item, entry, _join(where, str(i))) for i, entry in enumerate(cast("list[object]", value)))


def _mapping(item: Any, value: object, where: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {_show(value)}")
    entries = cast("Mapping[object, object]", value)
    return {str(key): _convert(item, entry, _join(where, str(key))) for key, entry in entries.items()}


def _scalar(hint: type, value: object, where: str) -> object:
    if hint is float and type(value) in (int, float) and math.isfinite(cast("float", value)):
        return float(cast("float", value))
    if hint is not float and type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {_SCALARS[hint]}, got {_show(value)}")


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    return f"the string {value!r}" if isinstance(value, str) else str(value).lower()


def _nearest_key(cls: type, key: str, where: str) -> str:
    """Why there is no such key, where that has a reason; the valid key below `cls` that looks most like it; or all keys
    of `cls`, where none does."""
    if key in _REFUSED:
        return _REFUSED[key]

    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, key, path.rpartition(".")[2]).ratio()

    nearest = max(_all_keys(cls), key=likeness)
    if likeness(nearest) >= 0.6:
        return f"did you mean {_join(where, nearest)}?"
    return f"valid here: {', '.join(field.name for field in dataclasses.fields(cls))}"


def _all_keys(cls: type) -> list[str]:
    """Dotted keys of a config class, its own before those of its groups; list entries are left out."""
    hints = typing.get_type_hints(cls)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    nested = [_join(name, key) for name, hint in groups.items() for key in _all_keys(cast("type", hint))]
    return [*hints, *nested]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[Any, ...]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[object, Any]", value).items()}
    return value


def _differences(a: Any, b: Any, where: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(key, value, cast("dict[str, Any]", b)[key]) for key, value in cast("dict[str, Any]", a).items()]
    elif isinstance(a, list) and isinstance(b, list) and len(cast("list[Any]", a)) == len(cast("list[Any]", b)):
        entries = zip(cast("list[Any]", a), cast("list[Any]", b), strict=True)
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(entries)]
    else:
        if a != b:
            yield where
        return
    for key, x, y in pairs:
        yield from _differences(x, y, _join(where, key))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
