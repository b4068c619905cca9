"""Write a file under another name first, so that it appears only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """
    Yields the name to write to. The file gets its own name when the context exits without an error.

    Raises:
        FileExistsError: If the file exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Give another name, or allow it to be replaced: `overwrite=True`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
