"""What commands write: files that are there are replaced only when that is asked for, and this is told first."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The option that allows files to be replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace the files of --out that are there")


def require_new(out: Path, overwrite: bool, suffixes: Sequence[str] = (".txt", ".png")) -> None:
    """
    Refuse to write over files, before any work is done.

    Args:
        out (`Path`):
            File that the command writes.
        overwrite (`bool`):
            Whether files may be replaced.
        suffixes (`Sequence[str]`, *optional*):
            Endings of the files that it writes beside that one.

    Raises:
        FileExistsError: If one of them exists and may not be replaced.
    """
    taken = [str(file) for file in (out, *map(out.with_suffix, suffixes)) if file.exists()]
    if taken and not overwrite:
        raise FileExistsError(
            f"{' and '.join(taken)} exist{'s' * (len(taken) == 1)} already. Give another --out, or --overwrite to "
            "replace what is there."
        )
