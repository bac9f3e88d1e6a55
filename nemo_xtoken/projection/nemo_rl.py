"""NeMo-RL's two projection files (`torch.save`): the top-k one, read and written, and the one of counts, read.

    top-k   {"indices": [V_S, K] integers, -1 for none; "likelihoods": [V_S, K] numbers; names and flags}
    counts  {(student id, teacher id): number, ...}
Their rows may be those of a model's padded vocabulary, and need not sum to 1. Only tensors, numbers and names are read:
a file that holds anything else is refused before any of it can run.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray

from nemo_xtoken.errors import ProjectionError
from nemo_xtoken.projection import file
from nemo_xtoken.projection.build import exact_partners, own_ids
from nemo_xtoken.projection.entries import Entries, heaviest
from nemo_xtoken.projection.matrix import NO_TOKEN, ProjectionMatrix
from nemo_xtoken.tokenizers.protocol import Tokenizer

MAX_PADDED_ROWS = 2048
"""Most rows that a model's head may have beyond its tokenizer's ids; the widest published gap is about 1,100."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_HEAVIEST = float(np.finfo(np.float32).max)
_FORMATS = "indices and likelihoods, or counts by (student id, teacher id)"


def read(path: Path, student: Tokenizer, teacher: Tokenizer, top_k: int) -> ProjectionMatrix:
    """W from a file of NeMo-RL, cut to the tokenizers' ids and to the top_k heaviest entries of a row, normalised.

    Weights are taken as they are, those of the arbitrary extra token that NeMo-RL may add to a row included. Exact are
    the rows whose only entry is the partner of pass 1. Raises ProjectionError for a file that is no such file, holds
    more than tensors and numbers, or does not fit the two tokenizers.
    """
    entries, num_rows = _read_entries(path)
    _check_fit(path, entries, num_rows, student, teacher)
    entries = entries.where((entries.rows < student.vocab_size) & (entries.columns < teacher.vocab_size))
    indices, weights = heaviest(entries, (student.vocab_size, teacher.vocab_size), top_k)
    partners = exact_partners(student, teacher)
    _check_agreement(path, indices, partners)
    single = (indices != NO_TOKEN).sum(axis=1) == 1
    return ProjectionMatrix(
        indices=indices,
        weights=weights,
        teacher_vocab_size=teacher.vocab_size,
        student_fingerprint=student.fingerprint,
        teacher_fingerprint=teacher.fingerprint,
        student_spec=student.spec,
        teacher_spec=teacher.spec,
        exact=single & (indices[:, 0] == partners) & own_ids(student),
    )


def write(matrix: ProjectionMatrix, path: Path) -> None:
    """Write the top-k file, whole or not at all. Raises ProjectionError where it can't be written.

    NeMo-RL takes every row of one entry for an exact pair, so rows such as "11" -> "1" become common tokens there.
    """
    missing = max(0, 2 - matrix.indices.shape[1])  # NeMo-RL looks at the second column to tell exact rows
    columns = ((0, 0), (0, missing))
    content = {
        "indices": torch.as_tensor(np.pad(matrix.indices, columns, constant_values=NO_TOKEN)).long(),
        "likelihoods": torch.as_tensor(np.pad(matrix.weights, columns)),
        "student_model_id": matrix.student_spec,
        "teacher_model_id": matrix.teacher_spec,
        "enable_scale_trick": False,
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    file.write_whole(path, stream.getvalue())


def _read_entries(path: Path) -> tuple[Entries, int | None]:
    """Entries with weight, and the number of rows where the file says it."""
    content = _load(path)
    if {"indices", "likelihoods"} <= content.keys():
        return _top_k_entries(path, content["indices"], content["likelihoods"])
    if content and all(isinstance(key, tuple) and len(cast("tuple[Any, ...]", key)) == 2 for key in content):
        return _count_entries(path, content), None
    raise ProjectionError(f"{path} is not a projection file of NeMo-RL: expected {_FORMATS}")


def _load(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise ProjectionError(f"no projection file at {path}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ProjectionError(
            f"{path} is damaged, or holds more than tensors, numbers and names, which is not read for safety"
        ) from error
    if not isinstance(content, dict):
        raise ProjectionError(f"{path} is not a projection file of NeMo-RL: expected {_FORMATS}")
    return cast("dict[Any, Any]", content)


def _top_k_entries(path: Path, indices: Any, likelihoods: Any) -> tuple[Entries, int]:
    _require(
        _is_plain(indices)
        and _is_plain(likelihoods)
        and indices.dtype in _INTEGERS
        and (likelihoods.dtype.is_floating_point or likelihoods.dtype in _INTEGERS)
        and indices.ndim == 2
        and indices.shape == likelihoods.shape
        and indices.shape[1] > 0,
        f"{path}: expected dense tensors of one shape [V_S, K > 0], indices of integers and likelihoods of real "
        f"numbers, got {_described(indices)} and {_described(likelihoods)}; save it again as NeMo-RL does",
    )
    columns = indices.long().numpy(force=True).reshape(-1)
    rows = np.repeat(np.arange(indices.shape[0]), indices.shape[1])
    weights = likelihoods.double().numpy(force=True).reshape(-1)
    return _with_weight(path, Entries(rows, columns, weights)), indices.shape[0]


def _is_plain(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether numpy can read it: a tensor whose numbers are all there, in memory."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
    )


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or value.is_nested:
        return f"a {type(value).__name__}"
    kind = "" if _is_plain(value) else f" ({value.layout}, {value.device})".replace("torch.", "")
    return f"{list(value.shape)} {value.dtype}{kind}".replace("torch.", "")


def _count_entries(path: Path, counts: dict[Any, Any]) -> Entries:
    _require(
        all(isinstance(part, int) for place in counts for part in place)
        and all(isinstance(count, int | float) for count in counts.values()),
        f"{path}: expected numbers by (student id, teacher id), got other things among them",
    )
    try:
        places = np.array(list(counts), np.int64)
        weights = np.array(list(counts.values()), np.float64)
    except OverflowError as error:
        raise ProjectionError(f"{path}: expected ids and counts of 64 bits at most, got larger ones") from error
    _require(bool((places >= 0).all()), f"{path}: student and teacher ids must not be negative")
    return _with_weight(path, Entries(places[:, 0], places[:, 1], weights))


def _with_weight(path: Path, entries: Entries) -> Entries:
    """The entries of some weight. Raises ProjectionError where one's weight is no weight, and where there are none."""
    kept = entries.where(entries.columns >= 0)
    _require(
        bool(((kept.weights >= 0) & (kept.weights <= _HEAVIEST)).all()),
        f"{path}: weights must be numbers, not negative and not above {_HEAVIEST:.1e}",
    )
    kept = kept.where(kept.weights > 0)
    _require(len(kept.weights) > 0, f"{path}: expected weights, got none above 0")
    return kept


def _check_fit(path: Path, entries: Entries, num_rows: int | None, student: Tokenizer, teacher: Tokenizer) -> None:
    columns = int(entries.columns.max(initial=NO_TOKEN)) + 1
    rows = int(entries.rows.max(initial=NO_TOKEN)) + 1 if num_rows is None else num_rows
    for side, tokenizer, size in (("student", student, rows), ("teacher", teacher, columns)):
        too_few = tokenizer is student and num_rows is not None and size < tokenizer.vocab_size
        _require(
            not too_few and size <= tokenizer.vocab_size + MAX_PADDED_ROWS,
            f"{path} does not fit the {side} tokenizer {tokenizer.spec}: expected {tokenizer.vocab_size:,} ids, and "
            f"padding at most, got {size:,}; give the tokenizers that it was made with",
        )


def _check_agreement(path: Path, indices: NDArray[np.int32], partners: NDArray[np.int32]) -> None:
    """Raises ProjectionError where most tokens that both sides have do not meet: the file is of another pair."""
    both = (partners != NO_TOKEN) & (indices[:, 0] != NO_TOKEN)
    meet = int((indices[both, 0] == partners[both]).sum())
    _require(
        2 * meet >= both.sum(),
        f"{path} does not fit these tokenizers: of {both.sum():,} tokens that both have, only {meet:,} meet in it; "
        "give the tokenizers that it was made with",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProjectionError(message)
