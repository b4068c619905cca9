"""The command `lab`."""

import argparse
from pathlib import Path


def add_lab(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the small model that ships with the package, its SAEs and its texts to a folder, for the other "
        "commands. Nothing is downloaded."
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write; it must be new or empty")
    parser.set_defaults(run=_lab)


def _lab(arguments: argparse.Namespace) -> None:
    from ..lab.folder import CONTENTS, write_lab

    folder = write_lab(arguments.folder)
    width = max(len(str(folder / name)) for name in CONTENTS)
    print("\n".join(f"{folder / name!s:{width}}  {text}" for name, text in CONTENTS.items()))
