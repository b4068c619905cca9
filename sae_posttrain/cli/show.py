"""The command `show`."""

import argparse
import re
from pathlib import Path

from ..model_source import require_model
from .options import (
    TEXT_OPTIONS,
    add_model,
    add_options,
    add_overwrite,
    add_sae_options,
    add_template_kwargs,
    add_texts,
    require_new,
    say_written,
)


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a page that shows the features of a set, and give features names."
    parser.add_argument("features", metavar="FEATURES", help="feature set: file, folder or Hub repository")
    add_texts(parser, required=False)
    add_model(parser, required=False, what="model that the texts are read with")
    parser.add_argument("--sae", nargs="+", help="SAEs that the features are from, to show what fires in them")
    parser.add_argument("--out", type=Path, help="HTML file to write (default: beside the features)")
    add_overwrite(parser)
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="BLOCK:NUMBER=NAME",
        help="name for a feature, e.g. 3:1377=loop; written into the file of the set; may be repeated",
    )
    parser.add_argument("--allow-base-model", help="another model on which the features may be read")
    add_options(parser, {**TEXT_OPTIONS, "batch_size": (int, "texts in one forward pass (default: 16)")})
    add_template_kwargs(parser)
    add_sae_options(parser)
    parser.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> None:
    names = dict(_read_name(each) for each in arguments.name)
    if arguments.texts is None and not names:
        raise ValueError("Give `texts` to look at the features on, or a `name` for one of them.")
    if arguments.texts is not None and arguments.model is None:
        raise ValueError("Give the `model` that the texts are read with.")
    local = Path(arguments.features).exists()
    if names and not local:
        raise ValueError(f"Names are written into the file of the set, and {arguments.features} is no file or folder.")
    out = arguments.out or (Path(arguments.features) if local else Path("features")).with_suffix(".html")
    if arguments.texts is not None:
        require_new(out, arguments.overwrite, ())
        require_model(arguments.model)
    from ..analysis.show import name_features, show_features
    from ..features.read.text_options import TextOptions
    from ..features.set.feature_set import FeatureSet

    feature_set = FeatureSet.from_pretrained(arguments.features)
    written = []
    if names:
        feature_set = name_features(feature_set, names)
        written.append(feature_set.save(arguments.features, overwrite=True))
    if arguments.texts is not None:
        given = vars(arguments)
        options = {name: given[name] for name in (*TEXT_OPTIONS, "batch_size") if name in given}
        page = show_features(
            arguments.model,
            feature_set,
            arguments.texts,
            out,
            sae=arguments.sae,
            text_options=TextOptions(**options, chat_template_kwargs=arguments.chat_template_kwargs),
            allow_base_model=arguments.allow_base_model,
            k=arguments.k,
            format=arguments.format,
            revision=arguments.revision,
        )
        written.append(page)
    print(feature_set)
    say_written(written)


def _read_name(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"([^=]+:\d+)=(.+)", text)
    if found is None:
        raise ValueError(f"`name` is written as BLOCK:NUMBER=NAME, such as 3:1377=loop; got {text!r}.")
    return found[1], found[2]
