"""The file of W: safetensors, with everything that identifies the pair in its metadata.

Tensors: indices [V_S, K] int32, weights [V_S, K] float32, exact [V_S] bool and, where they are known, pieces [pieces]
int32 and piece_ends [V_S] int32 of the student's tokens, teacher_pieces [pieces] int32 and teacher_piece_ends [V_T]
int32 of the teacher's. Metadata: one JSON object under `KEY`, so that the same matrix always gives the same bytes
(safetensors keeps no order of several keys). Read as well: schema 3, which had the student's pieces only, and 2, which
had none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from nemo_xtoken.errors import ProjectionError, require
from nemo_xtoken.whole_file import whole_file

SCHEMA = 4
READABLE = (2, 3, SCHEMA)
KEY = "nemo_xtoken.projection"
TENSORS = ("exact", "indices", "weights")
PIECES = ("piece_ends", "pieces")
TEACHER_PIECES = ("teacher_piece_ends", "teacher_pieces")
DESCRIPTION: Mapping[str, tuple[type, ...]] = {
    "teacher_vocab_size": (int,),
    "student_fingerprint": (str,),
    "teacher_fingerprint": (str,),
    "student_spec": (str,),
    "teacher_spec": (str,),
    "beta": (float, int, type(None)),
    "gamma": (float, int, type(None)),
    "reverse_pass": (bool,),
}
"""What a file says of its matrix, and the types of each value."""

_HEADER: Mapping[str, tuple[type, ...]] = {"schema": (int,), "sha256": (str,), **DESCRIPTION}

Value = str | int | float | None
Arrays = dict[str, NDArray[Any]]


def write(path: str | Path, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Value]) -> None:
    """Write a projection file, whole or not at all. Raises ProjectionError where the folder can't be written."""
    path = Path(path)
    arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    header = {**description, "schema": SCHEMA, "top_k": arrays["indices"].shape[1], "sha256": _digest(arrays)}
    content = to_bytes(arrays, {KEY: json.dumps(header, sort_keys=True)})
    write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder and rename, so that a reader never sees half a file.

    Raises ConfigError where there is a folder of this name, ProjectionError where it can't be written.
    """
    require(not path.is_dir(), f"{path}: expected the name of a file to write, got a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        raise ProjectionError(f"cannot write the projection file {path}: {error.strerror}") from error


def read(path: str | Path) -> tuple[Arrays, dict[str, Value]]:
    """Tensors by name and description by name. Raises ProjectionError unless the file is whole and of this schema."""
    arrays, header = _read_safetensors(Path(path))
    _require(
        set(arrays) in ({*TENSORS}, {*TENSORS, *PIECES}, {*TENSORS, *PIECES, *TEACHER_PIECES}),
        f"{path} is damaged: expected tensors {list(TENSORS)}, perhaps {[*PIECES, *TEACHER_PIECES]}, "
        f"got {sorted(arrays)}",
    )
    _require(
        header["sha256"] == _digest(arrays), f"{path} is damaged: its content differs from its checksum; build it again"
    )
    return arrays, {name: header[name] for name in DESCRIPTION}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProjectionError(message)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    with whole_file(path) as unfinished, unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    if not path.is_file():
        raise ProjectionError(f"no projection file at {path}; make one with `nemo-xtoken projection build`")
    try:
        opened: Any = safe_open(path, framework="np")
        with opened as stream:
            header = _header(path, stream.metadata() or {})
            return {name: stream.get_tensor(name) for name in stream.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: numbers that numpy lacks
        raise ProjectionError(f"{path} is damaged or not a projection file ({error}); build it again") from error


def _check_schema(path: str | Path, schema: int) -> None:
    if schema not in READABLE:
        age = "a newer" if schema > SCHEMA else "an older"
        raise ProjectionError(
            f"{path} has schema {schema} of {age} version, expected {SCHEMA}; build it again with this version"
        )


def _header(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in metadata:
        raise ProjectionError(f"{path} is not a projection file: its metadata lacks {KEY}")
    try:
        header: Any = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ProjectionError(f"{path} is damaged: its metadata is not JSON; build it again") from error
    _require(isinstance(header, dict), f"{path} is damaged: its metadata is not a JSON object; build it again")
    _check_types(path, header, {"schema"})
    _check_schema(path, header["schema"])
    _check_types(path, header, _HEADER.keys())
    return header


def _check_types(path: str | Path, header: Mapping[str, Any], names: Set[str]) -> None:
    missing = sorted(names - header.keys())
    _require(not missing, f"{path} is damaged: its metadata lacks {', '.join(missing)}; build it again")
    wrong = [name for name in sorted(names) if type(header[name]) not in _HEADER[name]]  # True is no number here
    if wrong:
        kinds = " or ".join(kind.__name__ for kind in _HEADER[wrong[0]])
        got = type(header[wrong[0]]).__name__
        raise ProjectionError(f"{path} is damaged: {wrong[0]} in its metadata is {got}, not {kinds}; build it again")
