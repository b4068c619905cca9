"""
The folder of a synthesis: its settings, and every attempt, a line each, added a batch at a time.

What was accepted and what is left to do follow from these lines, so that an interrupted run loses its last batch at
most, and goes on as if it had not been interrupted.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...measure.answers.folder import describe_differences, read_json, write_json

ATTEMPTS_FILE = "attempts.jsonl"
SETTINGS_FILE = "settings.json"
TARGETS_FILE = "targets.json"
ROWS_FILE = "synthetic.jsonl"
REPORT_FILE = "report.json"
ACTIVATIONS_FOLDER = "activations"

REASONS = ("no answer", "too short", "loop", "copies its prompt", "near-duplicate", "feature silent", "not needed")
"""Why an answer is not accepted."""


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """
    Write the settings into a new folder, or check that they are those of an existing one. As long as no attempt was
    made, other settings replace them, so that a mistake in the first call costs nothing.

    Raises:
        ValueError: If the folder holds something else, or a synthesis with other settings.
    """
    settings = json.loads(json.dumps(settings))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{folder} is not empty, and holds no synthesis. Give another `output_dir`.")
    stored = read_json(folder / SETTINGS_FILE)
    if stored == settings:
        return
    if stored is not None and (folder / ATTEMPTS_FILE).is_file():
        differences = describe_differences(stored, settings)
        raise ValueError(
            f"{folder} holds a synthesis with other settings or other seeds: {differences}. Give another "
            "`output_dir`, or delete it to start anew."
        )
    for made in (folder / TARGETS_FILE, *(folder / ACTIVATIONS_FOLDER).glob("*.safetensors")):
        made.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS_FILE, settings)


class Attempts:
    """
    Attempts so far, in memory and in a file that is only added to.

    Args:
        path (`Path`):
            The file. Lines of a batch that is not whole are cut off.
    """

    def __init__(self, path: Path):
        self._path = path
        self.records: list[dict[str, Any]] = []
        self.num_batches = 0
        self.num_tokens = 0
        self._tried: Counter[int] = Counter()
        self._accepted: Counter[int] = Counter()
        self._load()

    def _load(self) -> None:
        if not self._path.is_file():
            return
        content = self._path.read_bytes()
        position, whole, batch = 0, 0, []
        for line in content.splitlines(keepends=True):
            position += len(line)
            try:
                batch.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            if len(batch) == batch[0]["of_batch"]:
                whole = position
                self._take(batch)
                batch = []
        if whole < len(content):
            with self._path.open("r+b") as file:
                file.truncate(whole)

    def _take(self, batch: Sequence[dict[str, Any]]) -> None:
        for record in batch:
            self._tried[record["target"]] += 1
            self._accepted[record["target"]] += record["reason"] is None
            self.num_tokens += record["num_tokens"]
        self.records += batch
        self.num_batches += 1

    def add(self, batch: Sequence[dict[str, Any]]) -> None:
        """Add a batch, and see that it is on the disk."""
        batch = [{**record, "batch": self.num_batches, "of_batch": len(batch)} for record in batch]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in batch)
        with self._path.open("ab") as file:
            file.write(lines.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        self._take(batch)

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The accepted ones, in their order."""
        return [record for record in self.records if record["reason"] is None]

    def num_tried(self, target: int) -> int:
        """Attempts at a target."""
        return self._tried[target]

    def num_accepted(self, target: int) -> int:
        """Accepted rows of a target."""
        return self._accepted[target]

    def reasons(self, target: int | None = None) -> dict[str, int]:
        """How many were not accepted, by reason; of one target or of all."""
        counts = Counter(each["reason"] for each in self.records if target in (None, each["target"]))
        return {reason: counts[reason] for reason in REASONS if counts[reason]}

    def next_targets(self, number: int, num_targets: int, rows_per_target: int, attempts_per_target: int) -> list[int]:
        """
        Targets of the next batch, each as often as it is tried there: those that were tried least first.

        Args:
            number (`int`):
                Most attempts of the batch.
            num_targets, rows_per_target, attempts_per_target (`int`):
                Targets, and how many rows and attempts each may have.
        """
        planned: Counter[int] = Counter()
        for _ in range(number):
            open_targets = [
                target
                for target in range(num_targets)
                if self._accepted[target] + planned[target] < rows_per_target
                and self._tried[target] + planned[target] < attempts_per_target
            ]
            if not open_targets:
                break
            chosen = min(
                open_targets,
                key=lambda target: (self._tried[target] + planned[target], self._accepted[target], target),
            )
            planned[chosen] += 1
        return sorted(planned.elements())
