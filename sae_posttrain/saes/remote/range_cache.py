"""Parts of a remote file that are kept on this machine: ranges of its bytes, and columns of its matrices."""

import bisect
import hashlib
import os
import re
import uuid
from pathlib import Path

DIGEST_BYTES = hashlib.sha256().digest_size


class RangeCache:
    """
    Byte ranges and matrix columns of one file, in a folder named after its content. Each is kept in a small file that
    begins with the SHA-256 of the rest.

    A damaged file counts as missing. File names consist of numbers only.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        found = (re.fullmatch(r"(\d+)-(\d+)", name) for name in names)
        self._ranges = sorted((int(name[1]), int(name[2])) for name in found if name)
        self._longest = max((end - start for start, end in self._ranges), default=0)
        self._last: tuple[int, bytes] = (0, b"")

    def covers(self, start: int, end: int) -> bool:
        """Whether the bytes from `start` to before `end` are cached in one piece."""
        return self._range_around(start, end) is not None

    def read(self, start: int, end: int) -> bytes | None:
        """The bytes from `start` to before `end`, or `None` if they are not cached in one piece."""
        first, held = self._last
        if not first <= start <= end <= first + len(held):
            while (found := self._range_around(start, end)) is not None:
                content = self._load(f"{found[0]}-{found[1]}", found[1] - found[0])
                if content is not None:
                    self._last = first, held = found[0], content
                    break
                self._ranges.remove(found)
            else:
                return None
        return held[start - first : end - first]

    def write(self, start: int, content: bytes) -> None:
        """Keep the bytes from `start` on."""
        found = (start, start + len(content))
        self._save(f"{found[0]}-{found[1]}", content)
        if found not in self._ranges:
            bisect.insort(self._ranges, found)
        self._longest = max(self._longest, len(content))

    def read_column(self, position: int, shape: tuple[int, ...], column: int, num_bytes: int) -> bytes | None:
        """A column of the matrix that begins at `position`, or `None` if it is not cached."""
        return self._load(_column_name(position, shape, column), num_bytes)

    def write_column(self, position: int, shape: tuple[int, ...], column: int, content: bytes) -> None:
        self._save(_column_name(position, shape, column), content)

    def _range_around(self, start: int, end: int) -> tuple[int, int] | None:
        place = bisect.bisect_right(self._ranges, (start, float("inf")))
        while place > 0 and self._ranges[place - 1][0] >= start - self._longest:
            place -= 1
            if self._ranges[place][1] >= end:
                return self._ranges[place]
        return None

    def _load(self, name: str, num_bytes: int) -> bytes | None:
        path = self.folder / name
        try:
            if path.stat().st_size != DIGEST_BYTES + num_bytes:
                return None
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        content = stored[DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == stored[:DIGEST_BYTES] else None

    def _save(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.folder / name, hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise ValueError(
                f"Fetched parts of a file on the Hub are kept in {self.folder}, which cannot be written ({error}). "
                "Set HF_HOME or HF_ASSETS_CACHE to a folder that can be written."
            ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and its parent folders, so that other processes see the whole file or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _column_name(position: int, shape: tuple[int, ...], column: int) -> str:
    return f"column-{position}-{'x'.join(map(str, shape))}-{column}"
