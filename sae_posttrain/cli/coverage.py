"""The command `coverage`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import (
    TEXT_OPTIONS,
    add_batch_size,
    add_blocks,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_sae_options,
    add_seed,
    add_template_kwargs,
    require_new,
    say_written,
    write_whole,
)


def add_coverage(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure which features of an SAE data sets cover, how far their examples repeat each other, and which sets "
        "share features. Writes a page, and the figures as JSON."
    )
    parser.add_argument(
        "data", metavar="DATA", nargs="+", help="data files; each is a set, or with --group-column each of its values"
    )
    add_model(parser)
    parser.add_argument("--sae", required=True, help="its SAE: folder or Hub repository")
    add_blocks(parser)
    add_out(parser, "page to write, ending in .html; the figures go to a .json file of the same name")
    add_overwrite(parser)
    add_options(parser, {name: TEXT_OPTIONS[name] for name in ("text_column", "split", "max_texts", "max_length")})
    parser.add_argument("--group-column", help="column that says to which set an example belongs (default: its file)")
    parser.add_argument(
        "--pool",
        choices=["last", "max"],
        default="last",
        help="features of an example: those at its last token, as published (default), or at any of its tokens",
    )
    parser.add_argument(
        "--positions",
        choices=["response", "prompt", "all"],
        default="all",
        help="tokens of an example: of the last answer, of the prompt, or of both (default: all)",
    )
    parser.add_argument(
        "--select", type=float, help="write the examples that cover most: a number, or a share below 1 such as 0.1"
    )
    parser.add_argument(
        "--reference", help="texts in which to show features that no set fires, as --texts of other commands"
    )
    parser.add_argument("--cache", type=Path, help="file that keeps the activations, ending in .safetensors")
    add_batch_size(parser, "texts", 16)
    add_template_kwargs(parser)
    add_sae_options(parser)
    add_seed(parser, "the intervals")
    parser.set_defaults(run=_coverage)


def _coverage(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {arguments.out}.")
    endings = (".json", ".jsonl") if arguments.select is not None else (".json",)
    require_new(arguments.out, arguments.overwrite, endings)
    if len(arguments.blocks) != 1:
        raise ValueError(f"Coverage is that of one block, got --blocks {' '.join(map(str, arguments.blocks))}.")
    if arguments.select is not None and not arguments.select > 0:
        raise ValueError(f"--select must be above 0, got {arguments.select}.")
    require_model(arguments.model)
    from ..analysis.coverage_page import coverage_page
    from ..analysis.covered import coverage
    from ..analysis.overlapping import overlap
    from ..analysis.reading import read_activations
    from ..analysis.selection import select
    from ..analysis.untouched import find_untouched
    from ..features.read.loading import load_saes
    from ..features.read.text_options import TextOptions
    from ..features.read.texts import check_texts

    given = vars(arguments)
    rows = []
    for path in arguments.data:
        read = check_texts(path, given.get("split", "train"), group_column=arguments.group_column,
                           text_column=given.get("text_column", "text"))  # fmt: skip
        name = Path(path).name.split(".jsonl")[0].split(".json")[0]
        rows += [{**row, "set": str(row[arguments.group_column]) if arguments.group_column else name} for row in read]
    reference = None
    if arguments.reference is not None:
        reference = check_texts(arguments.reference, given.get("split", "train"), group_column=None,
                                text_column=given.get("text_column", "text"))  # fmt: skip
    saes = load_saes(
        arguments.sae,
        arguments.blocks,
        arguments.site,
        k=arguments.k,
        format=arguments.format,
        revision=arguments.revision,
    )
    options = TextOptions(
        group_column="set",
        chat_template_kwargs=arguments.chat_template_kwargs,
        batch_size=arguments.batch_size,
        **{name: given[name] for name in ("text_column", "max_texts", "max_length") if name in given},
    )
    activations = read_activations(
        arguments.model,
        saes,
        rows,
        pool=arguments.pool,
        positions=arguments.positions,
        cache=arguments.cache,
        text_options=options,
    )
    measured = coverage(activations)
    several = len(measured.sets) > 1
    overlapping = overlap(activations, seed=arguments.seed) if several else None
    selection = None
    if arguments.select is not None:
        number = arguments.select if arguments.select >= 1 else max(1.0, round(arguments.select * len(activations)))
        if number != int(number):
            raise ValueError(f"--select is a whole number, or a share below 1; got {arguments.select}.")
        selection = select(activations, int(number))
    said = [str(measured), *([str(overlapping)] if overlapping else []), *([str(selection)] if selection else [])]
    print("\n\n".join(said))
    where = f"{arguments.pool} token" if arguments.pool == "last" else "any token"
    subtitle = f"{len(activations):,} examples in {len(measured.sets)} sets, block {arguments.blocks[0]}, {where}."
    results: dict[str, Any] = {
        "sets": {name: asdict(each) for name, each in measured.sets.items()},
        "untouched": measured.untouched,
        "num_features": measured.num_features,
        "origin": activations.origin,
    }
    if overlapping is not None:
        results["overlap"] = {
            name: value.tolist() if hasattr(value, "tolist") else value for name, value in vars(overlapping).items()
        }
    untouched = None
    if reference is not None:
        untouched = find_untouched(measured, arguments.model, saes[0], reference, text_options=options)
        results["untouched_in_reference"] = {
            "num_texts": untouched.num_texts,
            "num_fire": untouched.num_fire,
            "features": dict(zip(untouched.features, untouched.num_firing_texts)),
        }
    written = []
    if selection is not None:
        results["selection"] = {"rows": selection.rows.tolist(), "covered": selection.covered.tolist(),
                                "expected": selection.expected, "bound": selection.bound}  # fmt: skip
        kept = _kept_rows(rows, options.max_texts)
        lines = [json.dumps(kept[i], ensure_ascii=False, default=str) + "\n" for i in sorted(selection.rows.tolist())]
        written.append(write_whole(arguments.out.with_suffix(".jsonl"), "".join(lines)))
    page = coverage_page(measured, overlapping, selection, untouched, subtitle=subtitle)
    written += [
        write_whole(arguments.out, page),
        write_whole(arguments.out.with_suffix(".json"), json.dumps(results, ensure_ascii=False) + "\n"),
    ]
    say_written(written)


def _kept_rows(rows: list[Any], max_texts: int | None) -> list[Any]:
    """The rows that were read: at most so many of each set."""
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row["set"]] = seen.get(row["set"], 0) + 1
        if max_texts is None or seen[row["set"]] <= max_texts:
            kept.append(row)
    return kept
