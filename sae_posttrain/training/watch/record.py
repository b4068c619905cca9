"""`watch.jsonl`: one line a watch, with its rates, its cost and its answers. A resumed run goes on with it."""

import json
from pathlib import Path
from typing import Any

WATCH_FILE = "watch.jsonl"


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, whole or not at all for a reader that skips what does not end in a line break."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file, in order; none if there is no file. The last may be half written."""
    if not path.is_file():
        return []
    watches = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            watch = json.loads(line)
        except ValueError:
            continue
        if isinstance(watch, dict) and isinstance(watch.get("step"), int) and isinstance(watch.get("rates"), dict):
            watches.append(watch)
    return watches


def begin(path: Path, step: int, identity: str) -> list[dict[str, Any]]:
    """
    Make the file ready for a training that begins after `step`, and return its watches up to there. What came later is
    removed: it will be watched again. At step 0 an earlier run's file is moved to `watch.jsonl.old`.

    Raises:
        ValueError: If a run is resumed whose watches had other prompts or settings.
    """
    if step == 0:
        if path.is_file():
            path.replace(path.with_name(path.name + ".old"))
        return []
    watches = [watch for watch in read(path) if watch["step"] <= step]
    if any(watch.get("identity") != identity for watch in watches):
        raise ValueError(
            f"{path} was written with other prompts, faults or sampling than this watch, and this run goes on with "
            "it. Give the same ones, or move the file away."
        )
    if path.is_file():
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in watches), encoding="utf-8")
        part.replace(path)
    return watches
