"""The folder of trained SAEs: check what it holds already, and add the results when a training is complete."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..measure.answers.folder import write_json

REPORT = "training.json"


def require_new(folder: Path, names: Iterable[str]) -> None:
    """
    Check that these SAEs can be written: none of them exists, and they can be added to the report.

    Raises:
        ValueError: If they cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Name a folder, which may exist.")
    for name in names:
        if (folder / name).exists():
            raise ValueError(f"{folder} holds {name} already. Name another folder, or remove that one.")
    read_report(folder)


def read_report(folder: Path) -> dict[str, Any]:
    """
    The report on the SAEs of a folder by name: how they were trained, and their quality. Empty if there is none yet.

    Raises:
        ValueError: If the file exists but is not such a report.
    """
    file = folder / REPORT
    if not file.is_file():
        return {}
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}). Name another folder, or remove it.") from error
    if not isinstance(report, dict):
        raise ValueError(f"{file} is no report of a training of SAEs. Name another folder, or remove it.")
    return report


def publish(finished: Path, folder: Path, names: Collection[str]) -> list[Path]:
    """
    Move finished SAEs to their final folder, each as a whole. Those that an interrupted call has moved stay.

    Args:
        finished (`pathlib.Path`):
            Folder with the finished SAEs, on the same disk.
        folder (`pathlib.Path`):
            Final folder.
        names (`Collection[str]`):
            Names of the SAEs in both folders.

    Returns:
        `list[pathlib.Path]`: final paths of the SAEs.
    """
    folder.mkdir(exist_ok=True)
    for name in names:
        if (finished / name).exists() or not (folder / name).exists():
            os.rename(finished / name, folder / name)
    return [folder / name for name in names]


def add_to_report(folder: Path, entries: Mapping[str, Any]) -> None:
    """Add entries on some SAEs, by their names, to the report of their folder."""
    write_json(folder / REPORT, read_report(folder) | dict(entries))
