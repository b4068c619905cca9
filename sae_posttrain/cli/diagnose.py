"""The command `diagnose`."""

import argparse
import shlex
from dataclasses import replace

from ..model_source import require_model
from .options import (
    NEW_FEATURES,
    add_blocks,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_sae_options,
    add_seed,
    add_template_kwargs,
    require_new,
    require_safetensors,
    say_written,
)

_TEXT_OPTIONS: dict[str, tuple[type, str]] = {
    "text_column": (str, "column with the text (default: text)"),
    "max_length": (int, "tokens kept of each prompt and answer (default: 512)"),
    "batch_size": (int, "answers in one forward pass (default: 16)"),
}


def add_diagnose(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the features that tell bad answers from good ones, when they begin to fire, and what words alone tell. "
        "Writes a feature set, a table and a page (pip install 'sae_posttrain[analysis]')."
    )
    add_model(parser, what="causal language model that wrote the answers")
    parser.add_argument(
        "--sae", required=True, nargs="+", help="its SAEs: folder or Hub repository, one for all blocks or one each"
    )
    add_blocks(parser)
    parser.add_argument(
        "--bad", required=True, help="bad answers: folder that `evaluate` wrote (it may give both), or data file"
    )
    parser.add_argument("--good", help="good answers, in the same forms")
    parser.add_argument(
        "--fault",
        choices=["any", "switching", "loops"],
        default="any",
        help="what makes a judged answer bad (default: any)",
    )
    add_out(parser, f"{NEW_FEATURES}; the table and the page are written beside it")
    add_overwrite(parser)
    parser.add_argument("--num-features", type=int, default=5, help="features to keep over all blocks (default: 5)")
    parser.add_argument(
        "--pool",
        choices=["mean", "max", "count"],
        default="mean",
        help="what is compared of an answer: mean or max activation, or count of tokens that fire (default: mean)",
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="share of false discoveries (default: 0.05)")
    parser.add_argument(
        "--check", action="store_true", help="remove each feature and read the probability of the fault's tokens"
    )
    parser.add_argument("--cache", help="file that keeps the activations, ending in .safetensors")
    add_options(parser, _TEXT_OPTIONS)
    add_template_kwargs(parser)
    add_sae_options(parser)
    add_seed(parser, "the division of the answers")
    parser.set_defaults(run=_diagnose, words=[])


def _diagnose(arguments: argparse.Namespace) -> None:
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite, (".txt", ".html"))
    require_model(arguments.model)
    from accelerate import PartialState

    from ..analysis.diagnosing import diagnose
    from ..features.read.text_options import TextOptions
    from ..model_records import recorded_name

    given = vars(arguments)
    options = {name: given[name] for name in _TEXT_OPTIONS if name in given}
    names = ("fault", "blocks", "site", "num_features", "pool", "alpha", "check", "cache", "seed", "k", "format")
    found = diagnose(
        arguments.model,
        arguments.sae,
        arguments.bad,
        arguments.good,
        text_options=TextOptions(**options, chat_template_kwargs=arguments.chat_template_kwargs),
        revision=arguments.revision,
        **{name: given[name] for name in names},
    )
    if not PartialState().is_main_process:
        return
    command = shlex.join(["sae-posttrain", *map(recorded_name, arguments.words)])
    features = replace(found.features, notes={**found.features.notes, "command": command})
    features.save(arguments.out, overwrite=True)  # `require_new` has asked about old files
    table, page = arguments.out.with_suffix(".txt"), arguments.out.with_suffix(".html")
    table.write_text(f"{found}\n", encoding="utf-8")
    found.write_page(page)
    print(found)
    say_written([arguments.out, table, page])
