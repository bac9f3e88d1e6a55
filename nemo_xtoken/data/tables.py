"""Tables with a document a row: Parquet files, and the Arrow files of a Hugging Face dataset on disk. Needs pyarrow."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_xtoken.data.reading import (
    BadDocument,
    Fields,
    Scan,
    Slice,
    SourceDocument,
    cut_units,
    decode_utf8,
    hash_file,
    listed,
)
from nemo_xtoken.data.text_files import text_value
from nemo_xtoken.errors import DataError, UnavailableError

BATCH_ROWS = 256


def pyarrow(module: str, path: Path) -> Any:
    """A module of pyarrow. Raises UnavailableError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f"{path} needs pyarrow to be read; pip install 'nemo-xtoken[tables]'") from error


class ParquetFile:
    """A Parquet file. It is cut between row groups."""

    has_keys = True

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """See `SourceFormat.scan`."""
        metadata = _parquet(path).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes, rows = [group.total_byte_size for group in groups], [group.num_rows for group in groups]
        return Scan(hash_file(path), cut_units(path, sizes, rows, slice_bytes))

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """A document a row; see `SourceFormat.read`."""
        file = _parquet(part.path)
        groups = range(part.start, part.stop)
        rows = sum(file.metadata.row_group(i).num_rows for i in groups)
        _check_columns(file.schema_arrow.names, fields, part.path)
        columns = [key for key in (fields.text_key, fields.prompt_key) if key is not None]
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=list(groups), columns=columns)
        yield from _documents(batches, rows, part, fields)


class ArrowFile:
    """One of the Arrow stream files of a Hugging Face dataset on disk. It is cut between record batches."""

    has_keys = True

    def scan(self, path: Path, slice_bytes: int) -> Scan:
        """See `SourceFormat.scan`."""
        with _damage_of(path), pyarrow("pyarrow", path).memory_map(str(path)) as file:
            batches = [(batch.nbytes, batch.num_rows) for batch in map(_checked, _stream(file, path))]
        sizes, rows = [size for size, _ in batches], [count for _, count in batches]
        return Scan(hash_file(path), cut_units(path, sizes, rows, slice_bytes))

    def read(self, part: Slice, fields: Fields) -> Iterator[SourceDocument | BadDocument]:
        """A document a row; see `SourceFormat.read`."""
        with _damage_of(part.path), pyarrow("pyarrow", part.path).memory_map(str(part.path)) as file:
            stream = _stream(file, part.path)
            _check_columns(stream.schema.names, fields, part.path)
            batches = [_checked(batch) for i, batch in enumerate(stream) if part.start <= i < part.stop]
            rows = sum(batch.num_rows for batch in batches)
            smaller = (batch.slice(at, BATCH_ROWS) for batch in batches for at in range(0, len(batch), BATCH_ROWS))
            yield from _documents(smaller, rows, part, fields)


def _parquet(path: Path) -> Any:
    parquet = pyarrow("pyarrow.parquet", path)
    try:
        return parquet.ParquetFile(path)
    except pyarrow("pyarrow", path).ArrowException as error:
        raise DataError(f"{path} is not a Parquet file, or damaged: {_first_sentence(error)}") from error


def _stream(file: Any, path: Path) -> Any:
    try:
        return pyarrow("pyarrow.ipc", path).open_stream(file)
    except pyarrow("pyarrow", path).ArrowException as error:
        raise DataError(f"{path} is not an Arrow stream file, or damaged: {_first_sentence(error)}") from error


def _checked(batch: Any) -> Any:
    """The batch, whose buffers are as long as it needs: pyarrow itself reads past the end of others."""
    batch.validate()
    return batch


@contextmanager
def _damage_of(path: Path) -> Generator[None]:
    """Raises DataError for what pyarrow finds wrong."""
    try:
        yield
    except pyarrow("pyarrow", path).ArrowException as error:
        raise DataError(f"{path} is damaged: {_first_sentence(error)}; get the file again") from error


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def _check_columns(names: list[str], fields: Fields, path: Path) -> None:
    for key in (fields.text_key, fields.prompt_key):
        if key is not None and key not in names:
            raise DataError(f'{path} has no column "{key}" (its columns: {listed(names)}); pass another key')


def _documents(
    batches: Iterable[Any], rows: int, part: Slice, fields: Fields
) -> Iterator[SourceDocument | BadDocument]:
    file_bytes, number = part.file_bytes // max(rows, 1), part.first
    arrow = pyarrow("pyarrow", part.path)
    try:
        for batch in batches:
            texts = _column(batch, fields.text_key, arrow)
            prompts = [b""] * len(texts) if fields.prompt_key is None else _column(batch, fields.prompt_key, arrow)
            for text, prompt in zip(texts, prompts, strict=True):
                place = f"{part.path} row {number}"
                try:
                    text, prompt = (_text(text, fields.text_key, place), _text(prompt, fields.prompt_key or "", place))
                    yield SourceDocument(text, place, file_bytes, prompt)
                except DataError as error:
                    yield BadDocument(str(error), file_bytes)
                number += 1
    except arrow.ArrowException as error:
        raise DataError(f"{part.path} is damaged at or after row {number}: {_first_sentence(error)}") from error


def _column(batch: Any, key: str, arrow: Any) -> list[object]:
    """Values of a column; of text the bytes, since wrong UTF-8 in one row would fail them all."""
    column = batch.column(batch.schema.get_field_index(key))
    if not arrow.types.is_dictionary(column.type):
        return _whole_values(column, arrow).to_pylist()
    values = _whole_values(column.dictionary, arrow)
    return arrow.DictionaryArray.from_arrays(column.indices, values).dictionary_decode().to_pylist()


def _whole_values(column: Any, arrow: Any) -> Any:
    """A column, of text as bytes, none of whose values lies outside of it; to look costs a hundredth of reading them.
    Raises ArrowException."""
    if arrow.types.is_string(column.type):
        column = column.cast(arrow.binary())
    elif arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    column.validate(full=True)
    return column


def _text(value: object, key: str, place: str) -> str:
    return text_value(decode_utf8(value, Path(place), 0) if isinstance(value, bytes) else value, key, place)
