"""
The record of the demo's finished stages: a file in its folder, with which an interrupted run continues.

A stage is recorded when all its results are on the disk. Files that an unfinished stage left are removed before the
stage runs again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.answers.folder import write_json

RECORD_FILE = "demo.json"


@dataclass(frozen=True)
class Stage:
    """
    A part of the demo's work: a function that reads the files of earlier stages and writes the file or folder `makes`,
    which identifies the stage. `measures`: it writes the answers of an arm, which table and report show.
    """

    makes: Path
    text: str
    work: Callable[[], None]
    measures: bool = False


class Record:
    """
    The finished stages of a folder, and the settings and versions they were made with.

    Parameters:
        settings, versions: Settings and versions that must be the same when a run is resumed.
        seconds: Duration of each finished stage, by the path of its result.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], versions: Mapping[str, str], seconds: dict[str, float]
    ):
        self.folder = folder
        self.settings = settings
        self.versions = versions
        self.seconds = seconds

    def is_finished(self, made: Path) -> bool:
        """Whether the stage that writes `made` is finished."""
        return self._name(made) in self.seconds

    def run(self, stage: Stage) -> None:
        """Run an unfinished stage from its beginning, and record it."""
        if stage.makes.is_dir():
            shutil.rmtree(stage.makes)
        stage.makes.unlink(missing_ok=True)
        stage.makes.parent.mkdir(parents=True, exist_ok=True)
        before = time.perf_counter()
        stage.work()
        self.seconds[self._name(stage.makes)] = time.perf_counter() - before
        self.write()

    def write(self) -> None:
        """Write the whole file or nothing."""
        content = {"settings": self.settings, "versions": self.versions, "seconds": self.seconds}
        write_json(self.folder / RECORD_FILE, content)

    def _name(self, made: Path) -> str:
        return made.relative_to(self.folder).as_posix()


def open_record(
    folder: Path,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    *,
    resume: bool,
    overwrite: bool,
    own: tuple[str, ...],
) -> Record:
    """
    Open the record of a folder, made if missing, with the settings and package versions of this run. A demo in the
    folder is continued with `resume`, and removed with `overwrite`: the names in `own`; other files stay.
    """
    if resume and overwrite:
        raise ValueError("`resume` goes on with a demo and `overwrite` removes it: set one of the two.")
    fresh = Record(folder, settings, versions, {})
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write()
        return fresh
    if not (folder / RECORD_FILE).is_file():
        raise ValueError(
            f"{folder} is not an empty folder, and it holds no demo ({RECORD_FILE}) to go on with. Name a new folder."
        )
    if overwrite:
        for name in (*own, RECORD_FILE):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (folder / name).unlink(missing_ok=True)
        fresh.write()
        return fresh
    if not resume:
        raise ValueError(
            f"{folder} is not an empty folder: it holds a demo. --resume goes on with it, --overwrite removes it and "
            "starts again; or name a new folder."
        )
    stored = _read(folder / RECORD_FILE)
    differences = [
        f"{name} was {stored[kind].get(name)!r}, is {given.get(name)!r}"
        for kind, given in (("settings", settings), ("versions", versions))
        for name in {**stored[kind], **given}
        if stored[kind].get(name) != given.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds a demo that --resume cannot go on with: {'; '.join(differences)}. --overwrite removes it "
            "and starts again; or name a new folder."
        )
    return Record(folder, settings, versions, stored["seconds"])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged ({error}). --overwrite starts again.") from error
    kinds = ("settings", "versions", "seconds")
    if not isinstance(stored, dict) or not all(isinstance(stored.get(kind), dict) for kind in kinds):
        raise ValueError(f"{path} is no record of a demo: it needs {', '.join(kinds)}. --overwrite starts again.")
    return stored
