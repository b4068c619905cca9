"""
The folder of the pages: static files, and data files that a page loads from a disk, where it may not fetch.

A data file is a script that hands over one value, `browse.put("name", …)`. The folder appears under its name only when
it is complete.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...measure.report.rendering import STYLE

RECORD = "browse.json"
"""File that says what the pages are of; the pages themselves do not read it."""

FEATURES_A_FILE = 128
_LETTERS_A_FILE = 200_000
_STATIC = ("index.html", "browse.js", "browse.css")
_HERE = Path(__file__).parent


def require_new_folder(out: Path, overwrite: bool) -> None:
    """Raises an error if the folder exists, or, with `overwrite`, if it holds something else than such pages."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / RECORD).is_file():
        raise FileExistsError(f"{out} exists and holds no pages of features. Give another name for the folder.")
    if not overwrite:
        raise FileExistsError(f"{out} exists already. Give another name for the folder, or allow `overwrite`.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name, in place of an older one, when everything is written."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "data").mkdir(parents=True)
    try:
        yield part
        if out.exists():
            old = out.with_name(f".{out.name}.{os.getpid()}.old")
            out.rename(old)
            part.rename(out)
            shutil.rmtree(old)
        else:
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_static(folder: Path) -> None:
    """The page, its script, and its style on top of that of the report."""
    for name in _STATIC:
        before = STYLE.read_bytes() if name.endswith(".css") else b""
        (folder / name).write_bytes(before + (_HERE / name).read_bytes())


def write_data(folder: Path, name: str, value: Any) -> None:
    """One data file."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    target = folder / "data" / f"{name}.js"
    part = target.with_suffix(".part")
    part.write_bytes(f'browse.put("{name}",{content});\n'.encode("utf-8", "replace"))
    os.replace(part, target)


def read_data(folder: Path, name: str, default: Any = None) -> Any:
    """What [`write_data`] wrote; `default` if there is no such file."""
    file = folder / "data" / f"{name}.js"
    if not file.is_file():
        return default
    content = file.read_text(encoding="utf-8").strip()
    return json.loads(content.removeprefix(f'browse.put("{name}",').removesuffix(");"))


def write_features(folder: Path, records: list[Any]) -> int:
    """The records of the features, some in each file; the number of files."""
    starts = range(0, len(records), FEATURES_A_FILE)
    for number, start in enumerate(starts):
        write_data(folder, f"features-{number}", records[start : start + FEATURES_A_FILE])
    return len(starts)


def write_texts(folder: Path, records: Iterable[list[Any]]) -> list[int]:
    """The segments, files of about one size; the number of the first segment of each file."""
    firsts, waiting, letters, number = list[int](), list[Any](), 0, 0
    for record in records:
        waiting.append(record)
        letters += len(record[1])
        number += 1
        if letters > _LETTERS_A_FILE:
            write_data(folder, f"texts-{len(firsts)}", waiting)
            firsts.append(number - len(waiting))
            waiting, letters = [], 0
    if waiting:
        write_data(folder, f"texts-{len(firsts)}", waiting)
        firsts.append(number - len(waiting))
    return firsts


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """What the pages are of."""
    (folder / RECORD).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """
    What the pages are of.

    Raises:
        FileNotFoundError: If there are no such pages.
        ValueError: If the file is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        raise FileNotFoundError(f"There are no pages of features in {folder}. Give `texts` to make them.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        _ = [record[name] for name in ("model", "sae", "strongest")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged. Make the pages again.") from error
    return record
