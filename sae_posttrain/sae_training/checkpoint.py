"""
[`Checkpoints`]: the state of an unfinished training, in a folder beside its output.

```
saes.checkpoint/
    step-400/    record.json, shared.safetensors, blocks.9.hook_resid_post.safetensors, ...
    trained/     record.json, and the finished SAEs until they have been moved to the output
```

A checkpoint is written into a hidden folder, flushed to the disk and renamed; only then the one before is removed. So
a complete checkpoint exists at any time, whenever the process is killed.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..measure.answers.folder import describe_differences
from .processes import Processes

logger = logging.getLogger(__name__)

RECORD = "record.json"
_TRAINED = "trained"
_UNFINISHED = ".unfinished"
_REMOVED = ".removed"
_STEP = re.compile(r"step-(\d{1,18})")


class Checkpoints:
    """
    The checkpoints of one training.

    Args:
        output_dir (`pathlib.Path`):
            Folder for the trained SAEs; the checkpoints lie beside it.
        settings (`Mapping[str, Any]`):
            Everything that must be the same when the training goes on, as plain values.
        save_every (`float`):
            Minutes between two checkpoints; 0 for none.
        processes ([`Processes`]):
            This process and the others. All of them must see the folder.

    Raises:
        ValueError: If there is a checkpoint of a training with other settings, or its record cannot be read.
    """

    def __init__(self, output_dir: Path, settings: Mapping[str, Any], save_every: float, processes: Processes):
        self.path = checkpoint_path(output_dir)
        self._settings = json.loads(json.dumps(settings))
        self._seconds_between = 60 * save_every
        self._saved_at = time.monotonic()
        self._processes = processes
        found = newest(self.path)
        if found is None:
            return
        stored = read_record(found).get("settings")
        if not isinstance(stored, dict):
            raise damaged(found, "its record has no settings")
        if differences := describe_differences(stored, self._settings):
            raise ValueError(
                f"{self.path} holds an unfinished training with other settings: {differences}. Give the same settings "
                "to go on with it, `restart` to remove it and start again, or another `output_dir`."
            )

    def newest(self) -> Path | None:
        """Folder of the last complete checkpoint of a training that still goes on."""
        found = newest(self.path)
        return None if found is None or found.name == _TRAINED else found

    def trained(self) -> Path | None:
        """Folder with the trained SAEs that have not all been moved to the output and measured."""
        found = newest(self.path)
        return found if found is not None and found.name == _TRAINED else None

    def due(self) -> bool:
        """Whether it is time for the next checkpoint. All processes call this together, and hear the same."""
        if not self._seconds_between:
            return False
        over = time.monotonic() - self._saved_at >= self._seconds_between
        return self._processes.in_any(over and self._processes.is_main)

    def save_step(self, step: int, record: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """
        Write a checkpoint after a step. If it cannot be written, a warning says so, and the last one stays.

        Args:
            step (`int`):
                Steps done.
            record (`Mapping[str, Any]`):
                Plain values to keep.
            write (`Callable`):
                Writes the files of this process into the folder that it is given.
        """
        try:
            self._save(f"step-{step}", {"step": step, **record}, write)
        except OSError as error:
            logger.warning(
                "No checkpoint could be written at step %d (%s). The training goes on, and the last complete "
                "checkpoint stays. Free space on the disk of %s.",
                step,
                error,
                self.path.parent,
            )
        self._saved_at = time.monotonic()

    def save_trained(self, record: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """
        Write the trained SAEs; the checkpoints before are removed.

        Returns:
            `pathlib.Path`: the folder that holds them.

        Raises:
            OSError: If they cannot be written.
        """
        self._save(_TRAINED, record, write)
        return self.path / _TRAINED

    def _save(self, name: str, record: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        unfinished = self.path / _UNFINISHED

        def prepare() -> None:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)

        def complete() -> None:
            (unfinished / RECORD).write_text(json.dumps({"settings": self._settings, **record}), encoding="utf-8")
            _flush(unfinished)
            os.rename(unfinished, self.path / name)
            _flush_entries(self.path)

        try:
            self._together(prepare, main_only=True)
            self._together(lambda: write(unfinished))
            self._together(complete, main_only=True)
        except BaseException:
            if self._processes.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
                if self.path.is_dir() and not any(self.path.iterdir()):
                    self.path.rmdir()
            raise
        if self._processes.is_main:
            for other in list(self.path.iterdir()):
                if other.name != name:
                    _remove(other)

    def _together(self, action: Callable[[], None], main_only: bool = False) -> None:
        """Let each process, or the first one, do something; if it fails in one, it is an error in all."""
        error: Exception | None = None
        if self._processes.is_main or not main_only:
            try:
                action()
            except (OSError, SafetensorError) as problem:
                error = problem
        if self._processes.in_any(error is not None):
            raise OSError(str(error) if error else "another process could not write its part") from error

    def remove(self) -> None:
        """Remove all checkpoints, after the training or to start again."""
        if self._processes.is_main:
            remove_checkpoints(self.path)


def checkpoint_path(output_dir: Path) -> Path:
    """The folder of the checkpoints of a training into this folder."""
    whole = Path(os.path.abspath(output_dir))
    return whole.with_name(whole.name + ".checkpoint")


def is_trained(output_dir: Path) -> bool:
    """Whether a training into this folder was interrupted after its last step, before its end."""
    found = newest(checkpoint_path(output_dir))
    return found is not None and found.name == _TRAINED


def newest(path: Path) -> Path | None:
    """The last complete checkpoint of a folder of checkpoints, or the trained SAEs; `None` if there is nothing."""
    if (path / _TRAINED).is_dir():
        return path / _TRAINED
    steps = {int(found[1]): each for each in path.glob("step-*") if (found := _STEP.fullmatch(each.name))}
    return steps[max(steps)] if steps else None


def remove_checkpoints(path: Path) -> None:
    """Remove a folder of checkpoints; if this is interrupted, no part of one is taken for a whole."""
    if path.is_dir():
        _remove(path)


def read_record(checkpoint: Path) -> dict[str, Any]:
    """
    The plain values of a checkpoint.

    Raises:
        ValueError: If they cannot be read.
    """
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(checkpoint, f"{error}") from error
    if not isinstance(record, dict):
        raise damaged(checkpoint, f"{RECORD} is no JSON object")
    return record


def damaged(checkpoint: Path, why: str) -> ValueError:
    """The error about a checkpoint that cannot be read."""
    return ValueError(
        f"The checkpoint {checkpoint} is damaged: {why}. Delete this folder and run the same command again, which "
        "starts again (or goes on from an older checkpoint, if one is left)."
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        hidden = path.with_name(f"{_REMOVED}-{path.name}-{time.time_ns()}")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Have the disk keep all files and folders inside, so that a loss of power cannot empty them later."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        else:
            _flush_entries(path)
    _flush_entries(folder)


def _flush_entries(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
