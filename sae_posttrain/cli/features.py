"""The command `features`: what a repository holds, an index for one, and other names."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from .options import add_overwrite, require_new, require_safetensors, say_written


def add_features(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "list: say what feature sets a folder or Hub repository holds, for which model. index: write the index "
        "features.json of a folder, to be uploaded with it. rename: write a feature set with other names."
    )
    parser.add_argument("action", choices=["list", "index", "rename"], help="what to do")
    parser.add_argument("source", metavar="SOURCE", help="folder, feature set, or Hub repository (owner/name)")
    parser.add_argument("names", nargs="*", metavar="OLD=NEW", help="with rename: new names by old ones")
    parser.add_argument("--out", type=Path, help="with rename: file to write, ending in .safetensors")
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="with list: print JSON in place of a table")
    parser.set_defaults(run=_features)


def _features(arguments: argparse.Namespace) -> None:
    if arguments.action != "rename" and (arguments.names or arguments.out):
        raise ValueError("OLD=NEW and --out belong to rename.")
    if arguments.action != "list" and arguments.json:
        raise ValueError("--json belongs to list.")
    from ..features.set.feature_index import format_index, list_features, write_index

    if arguments.action == "list":
        if arguments.overwrite:
            raise ValueError("--overwrite belongs to index and rename.")
        entries = list_features(arguments.source)
        rows = [asdict(entry) for entry in entries]
        print(json.dumps(rows, ensure_ascii=False, indent=2) if arguments.json else format_index(entries))
    elif arguments.action == "index":
        say_written([write_index(arguments.source, overwrite=arguments.overwrite)])
    else:
        _rename(arguments)


def _rename(arguments: argparse.Namespace) -> None:
    if not arguments.names or arguments.out is None:
        raise ValueError("rename needs OLD=NEW, once or more, and --out FILE.safetensors.")
    wrong = [word for word in arguments.names if not word.rpartition("=")[0]]
    if wrong:
        raise ValueError(f"Names are given as OLD=NEW, such as 14.4245=loop; got {wrong[0]!r}.")
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite, ())
    from ..features.set.feature_set import FeatureSet

    names = {old: new for old, _, new in (word.rpartition("=") for word in arguments.names)}
    renamed = FeatureSet.from_pretrained(arguments.source).rename(names)
    say_written([renamed.save(arguments.out, overwrite=True)])
    print(renamed)
