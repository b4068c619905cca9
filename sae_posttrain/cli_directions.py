"""The command `find-directions`. Thin, as `cli.py`, which lists it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .cli_evaluate import add_template_kwargs
from .cli_output import add_overwrite, require_new
from .model_source import require_model

_TEXT_OPTIONS: dict[str, tuple[type, str]] = {
    "group_column": (str, "column with the group: a language or any other label (default: lang)"),
    "text_column": (str, "column with the text (default: text)"),
    "split": (str, "split of a `datasets` id (default: train)"),
    "max_texts": (int, "texts per group (default: all)"),
    "max_length": (int, "tokens of each text (default: 512)"),
    "batch_size": (int, "texts in one forward pass (default: 16)"),
    "held_out": (float, "share of each group's texts kept for the scores (default: 0.2)"),
    "seed": (int, "shuffles the texts and draws the probe's tokens (default: 0)"),
}
_PROBE_OPTIONS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "tokens that the probe is fitted on (default: 10000)"),
    "l2": (float, "regularisation beside the mean log loss (default: 0.001)"),
}
"""Options that one method takes and the other refuses: their type and help."""


def add_find_directions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find directions that stand for a group of texts with no SAE, by difference of means or logistic probe, and "
        "write them to one file that serves wherever features do."
    )
    parser.add_argument("--method", required=True, choices=["difference_of_means", "probe"], help="how to find them")
    parser.add_argument("--model", required=True, help="causal language model: folder or Hub id")
    parser.add_argument("--blocks", required=True, type=int, nargs="+", help="decoder blocks, counted from 0")
    parser.add_argument(
        "--texts",
        required=True,
        help="data file (JSON, JSONL, CSV, Parquet; or folder of them) of texts with a group, or `datasets` id",
    )
    parser.add_argument("--target-group", required=True, help="the group to find directions for, e.g. zh")
    parser.add_argument("--out", required=True, type=Path, help="file to write, ending in .safetensors")
    add_overwrite(parser)
    parser.add_argument("--site", default="resid_post", help="where in the blocks, e.g. mlp_out (default: resid_post)")
    parser.add_argument(
        "--num-directions",
        type=int,
        default=1,
        help="directions per block; by difference of means 1, or one for every other group (default: 1)",
    )
    _add(parser, _TEXT_OPTIONS)
    add_template_kwargs(parser)
    _add(parser.add_argument_group("only with --method probe"), _PROBE_OPTIONS)
    parser.set_defaults(run=_find_directions)


def _add(parser: Any, options: dict[str, tuple[type, str]]) -> None:
    for name, (of_type, help_text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=of_type, default=argparse.SUPPRESS, help=help_text)


def _find_directions(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {arguments.out}.")
    require_new(arguments.out, arguments.overwrite)
    wrong = [name for name in _PROBE_OPTIONS if name in given and arguments.method != "probe"]
    if wrong:
        raise ValueError(
            f"--{wrong[0].replace('_', '-')} belongs to --method probe, the method asked for is {arguments.method}."
        )
    require_model(arguments.model)
    from accelerate import PartialState

    from .features.find.by_direction import find_directions
    from .features.read.text_options import TextOptions
    from .features.set.picture import draw_features

    names = ("method", "target_group", "blocks", "site", "num_directions", *_TEXT_OPTIONS, *_PROBE_OPTIONS)
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
    written = [arguments.out, table]
    try:
        written.append(draw_features(feature_set, arguments.out.with_suffix(".png")))
    except ImportError as error:
        print(f"No picture: {error}", file=sys.stderr)
    print("Written: " + ", ".join(map(str, written)))
