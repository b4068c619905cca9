"""The command `import-directions`."""

import argparse

from .options import NEW_FEATURES, add_out, add_overwrite, require_new, require_safetensors, say_written


def add_import_directions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read directions that another tool made, and write them to a file that works wherever a feature set does."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=".gguf control vector, .pt file of steering-vectors, .json vector of Neuronpedia, or its id: "
        "model/source/index",
    )
    add_out(parser, NEW_FEATURES)
    add_overwrite(parser)
    parser.add_argument("--name", help="name of the directions (default: name or label of the file)")
    parser.add_argument("--site", help="where in its block each direction belongs, if the source does not say it")
    parser.add_argument("--base-model", default="", help="Hub id of the model that the directions belong to")
    parser.set_defaults(run=_import_directions)


def _import_directions(arguments: argparse.Namespace) -> None:
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite, ())
    from ..features.set.imported import import_directions

    found = import_directions(
        arguments.source, name=arguments.name, site=arguments.site, base_model=arguments.base_model
    )
    found.save(arguments.out, overwrite=True)
    print(found)
    say_written([arguments.out])
