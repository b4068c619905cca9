"""The command `find-directions`."""

import argparse

from ..model_source import require_model
from .options import (
    NEW_FEATURES,
    TEXT_OPTIONS,
    add_blocks,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_template_kwargs,
    add_texts,
    flag,
    require_new,
    require_safetensors,
    say_written,
)

_OWN_OPTIONS: dict[str, tuple[type, str]] = {
    "batch_size": (int, "texts in one forward pass (default: 16)"),
    "held_out": (float, "share of each group's texts that is kept for the scores (default: 0.2)"),
    "seed": (int, "seed of the order of texts and of the choice of the probe's tokens (default: 0)"),
}
_PROBE_OPTIONS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "tokens to fit the probe on (default: 10000)"),
    "l2": (float, "weight of the L2 regularisation, added to the mean log loss (default: 0.001)"),
}
"""Options that one method takes and the other refuses: their type and help."""


def add_find_directions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find directions that stand for a group of texts without an SAE, by difference of means or logistic probe. "
        "The file that is written works wherever a feature set does."
    )
    parser.add_argument("--method", required=True, choices=["difference_of_means", "probe"], help="how to find them")
    add_model(parser)
    add_blocks(parser)
    add_texts(parser)
    parser.add_argument("--target-group", required=True, help="group to find directions for, e.g. zh")
    add_out(parser, NEW_FEATURES)
    add_overwrite(parser)
    parser.add_argument("--site", default="resid_post", help="where in the blocks, e.g. mlp_out (default: resid_post)")
    parser.add_argument(
        "--num-directions",
        type=int,
        default=1,
        help="directions per block; by difference of means 1, or one for every other group (default: 1)",
    )
    add_options(parser, TEXT_OPTIONS | _OWN_OPTIONS)
    add_template_kwargs(parser)
    add_options(parser.add_argument_group("only with --method probe"), _PROBE_OPTIONS)
    parser.set_defaults(run=_find_directions)


def _find_directions(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite)
    wrong = [name for name in _PROBE_OPTIONS if name in given and arguments.method != "probe"]
    if wrong:
        raise ValueError(f"{flag(wrong[0])} belongs to --method probe, the method asked for is {arguments.method}.")
    require_model(arguments.model)
    from accelerate import PartialState

    from ..features.find.by_direction import find_directions
    from ..features.read.text_options import TextOptions
    from ..features.set.picture import draw_features

    names = ["method", "target_group", "blocks", "site", "num_directions"]
    names += [*TEXT_OPTIONS, *_OWN_OPTIONS, *_PROBE_OPTIONS]
    options = {name: given[name] for name in names if name in given}
    options["chat_template_kwargs"] = arguments.chat_template_kwargs
    options["text_options"] = TextOptions().take(options)
    feature_set = find_directions(arguments.model, arguments.texts, **options)
    if not PartialState().is_main_process:
        return
    feature_set.save(arguments.out, overwrite=True)
    table = arguments.out.with_suffix(".txt")
    print(feature_set)
    table.write_text(f"{feature_set}\n", encoding="utf-8")
    say_written([arguments.out, table], lambda: draw_features(feature_set, arguments.out.with_suffix(".png")))
