"""The command `browse`."""

import argparse
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import (
    TEXT_OPTIONS,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_sae_options,
    add_template_kwargs,
    add_texts,
    say_written,
)


def add_browse(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a folder of pages on which to search and read all features of an SAE, in a browser and without a "
        "network. With --query, read texts with the model and list the features that fire on them, also for pages "
        "that are there already."
    )
    parser.add_argument("sae", metavar="SAE", help="the SAE: folder or Hub repository")
    add_model(parser)
    add_texts(parser, required=False)
    parser.add_argument("--block", required=True, type=int, help="decoder block that the SAE reads, counted from 0")
    add_out(parser, "folder to write, or that of earlier pages for --query without --texts")
    add_overwrite(parser)
    parser.add_argument(
        "--query",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to read with the model: the pages and the terminal list what fires on it; may be repeated",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=[],
        help="feature sets found in this SAE (files, folders or Hub repositories): their scores and names are shown",
    )
    options = {
        "num_snippets": (int, "snippets of each feature (default: 8)"),
        **TEXT_OPTIONS,
        "batch_size": (int, "texts in one forward pass (default: 16)"),
    }
    add_options(parser, options)
    add_template_kwargs(parser)
    add_sae_options(parser)
    parser.set_defaults(run=_browse)


def _browse(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    how = {name: given[name] for name in ("block", "site", "k", "format", "revision")}
    if arguments.texts is None and not arguments.query:
        raise ValueError("Give `texts` to make pages from, or a `query` for pages that are there.")
    if arguments.texts is None:
        _query(arguments, how)
        return
    from ..analysis.browse.browse import browse_features
    from ..analysis.browse.folder import require_new_folder
    from ..features.read.text_options import TextOptions

    require_new_folder(arguments.out, arguments.overwrite)
    require_model(arguments.model)
    options = {name: given[name] for name in (*TEXT_OPTIONS, "batch_size") if name in given}
    page = browse_features(
        arguments.model,
        arguments.sae,
        arguments.texts,
        arguments.out,
        feature_sets=_sets(arguments.features),
        queries=arguments.query,
        overwrite=arguments.overwrite,
        text_options=TextOptions(**options, chat_template_kwargs=arguments.chat_template_kwargs),
        **({"num_snippets": given["num_snippets"]} if "num_snippets" in given else {}),
        **how,
    )
    say_written([page])


def _query(arguments: argparse.Namespace, how: dict[str, Any]) -> None:
    unused = [name for name in ("num_snippets", *TEXT_OPTIONS, "batch_size") if name in vars(arguments)]
    unused += [name for name in ("features", "overwrite", "chat_template_kwargs") if getattr(arguments, name)]
    if unused:
        raise ValueError(f"Without `texts`, no pages are made: leave out {', '.join(f'`{name}`' for name in unused)}.")
    from ..analysis.browse.browse import query_pages
    from ..analysis.browse.folder import read_record

    read_record(arguments.out)
    require_model(arguments.model)
    queries, tokenizer = query_pages(arguments.model, arguments.sae, arguments.out, arguments.query, **how)
    print("\n\n".join(query.table(tokenizer) for query in queries))
    say_written([arguments.out / "data" / "queries.js"])


def _sets(names: list[str]) -> dict[str, Any]:
    from ..features.set.feature_set import FeatureSet

    return {Path(name).name.removesuffix(".safetensors"): FeatureSet.from_pretrained(name) for name in names}
