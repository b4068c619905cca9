"""The command `import-directions`. Thin, as `cli.py`, which lists it."""

import argparse
from pathlib import Path

from .cli_output import add_overwrite, require_new


def add_import_directions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read directions that another tool made, and write them to one file that serves as features do."
    )
    parser.add_argument(
        "source",
        help=".gguf control vector, .pt file of steering-vectors, .json vector of Neuronpedia, or its id: "
        "model/source/index",
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write, ending in .safetensors")
    add_overwrite(parser)
    parser.add_argument("--name", help="what the directions are called (default: as their file or label)")
    parser.add_argument("--site", help="where in their blocks they belong, where the source does not say it")
    parser.add_argument("--base-model", default="", help="Hub id of the model that they belong to")
    parser.set_defaults(run=_import_directions)


def _import_directions(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {arguments.out}.")
    require_new(arguments.out, arguments.overwrite, ())
    from .features.set.imported import import_directions

    found = import_directions(
        arguments.source, name=arguments.name, site=arguments.site, base_model=arguments.base_model
    )
    found.save(arguments.out, overwrite=True)
    print(f"{found}\nWritten: {arguments.out}")
