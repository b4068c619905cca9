"""Rows of JSON, JSONL, CSV and Parquet files, with errors that name the file and the row, counted from 1."""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

DATA_ENDINGS = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet")
"""Endings of the names of data files."""

_LONGEST_FIELD = 2**31 - 1  # in characters of a CSV file; the default of the `csv` module is 131,072


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """
    Rows of a `.jsonl` file (one object per line; empty lines are skipped), a `.json` file (a list of objects), a
    `.csv` file (names of the columns in the first line; every value is a text) or a `.parquet` file.

    Text is UTF-8, with or without a byte order mark, and may be gzipped (`.gz`). Except for `.json`, rows are read one
    by one while you iterate.
    """
    path = Path(path)
    if not path.is_file():
        held = " It is a folder." if path.is_dir() else ""
        raise ValueError(f"There is no data file {path}.{held} Data is a {_named(DATA_ENDINGS)} file.")
    if not is_data_file(path.name):
        raise ValueError(
            f"{path} is not a {_named(DATA_ENDINGS)} file. Convert it, or give it the ending it should have."
        )
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_rows(path)
    if name.endswith(".csv"):
        return _csv_rows(path)
    return _json_rows(path) if name.endswith(".json") else _jsonl_rows(path)


def is_data_file(name: str) -> bool:
    """Whether [`read_rows`] reads files with such a name."""
    return name.endswith(DATA_ENDINGS)


def _named(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        try:
            rows = json.loads(file.read())
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}). A file with one object a line ends in .jsonl.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}, not a list of rows.")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"Row {number} of {path}")


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    with _open(path) as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            number += 1
            where = f"Row {number} of {path}" + (f" (line {line_number})" if line_number != number else "")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}).") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON ({error}).") from error
            yield _object(row, where)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(path, newline="") as file:
        reader = csv.DictReader(file, strict=True)
        number = 0
        try:
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise ValueError(
                        f"Row {number} of {path} has {'more' if None in row else 'fewer'} values than the first line "
                        f"names columns ({', '.join(reader.fieldnames or ())}). Put values with commas in quotes."
                    )
                yield row
        except csv.Error as error:
            raise ValueError(f"Row {number + 1} of {path}: not CSV ({error}).") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not readable as Parquet: {str(error).splitlines()[0]}") from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(row).__name__}.")
    return row


@contextmanager
def _open(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    opener: Callable[..., IO[str]] = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:  # with or without a byte order mark
        try:
            yield file
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            kind = "gzipped UTF-8 text" if path.name.endswith(".gz") else "UTF-8 text"
            raise ValueError(f"{path} is not readable as {kind}: {error}.") from error
