"""Rows of JSON and JSONL files, plain or gzipped, with errors that say where."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """
    Rows of a `.jsonl` file (an object a line; empty lines are skipped) or of a `.json` file (a list of objects).

    Both may be gzipped (`.gz`). JSONL is read as its rows are asked for.

    Args:
        path (`str` or path):
            The file.

    Raises:
        ValueError: If there is no such file or its name ends otherwise; on the way, if a row is not a JSON object or
            the file is not readable.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no data file {path}. Data is a .json, .jsonl, .json.gz or .jsonl.gz file; load anything else "
            "with `datasets.load_dataset` and pass the dataset."
        )
    name = path.name.removesuffix(".gz")
    if not name.endswith((".json", ".jsonl")):
        raise ValueError(
            f"{path} is not a .json, .jsonl, .json.gz or .jsonl.gz file; load it with `datasets.load_dataset` and "
            "pass the dataset."
        )
    return _json_rows(path) if name.endswith(".json") else _jsonl_rows(path)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        try:
            rows = json.loads(file.read())
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}). A file with one object a line ends in .jsonl.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}, not a list of rows.")
    for index, row in enumerate(rows):
        yield _object(row, f"{path}, row {index}")


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
            yield _object(row, f"{path}, line {number}")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, got {type(row).__name__}.")
    return row


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    opener: Callable[..., IO[str]] = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            yield file
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            kind = "gzipped UTF-8 text" if path.name.endswith(".gz") else "UTF-8 text"
            raise ValueError(f"{path} is not readable as {kind}: {error}.") from error
