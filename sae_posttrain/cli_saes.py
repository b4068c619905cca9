"""The commands about SAEs themselves: `inspect` and `convert`. Thin, as `cli.py`, which lists them."""

import argparse
import json
from pathlib import Path
from typing import Any

from .model_source import require_model

_FIT_OPTIONS: dict[str, tuple[type, str]] = {
    "base_model": (str, "model the SAE was trained on: measured too, and compared with"),
    "group_column": (str, "column with the group; rows may lack it (default: lang)"),
    "text_column": (str, "column with the text (default: text)"),
    "split": (str, "split of a `datasets` id (default: train)"),
    "max_texts": (int, "texts drawn (default: 200)"),
    "max_length": (int, "tokens of each text (default: 512)"),
    "batch_size": (int, "texts in one forward pass (default: 8)"),
    "seed": (int, "of the draw (default: 0)"),
}
"""Options of `inspect` that need `--model`: their type and help."""


def _add_source(parser: argparse.ArgumentParser) -> None:
    """What `load_sae` takes, but for the block."""
    parser.add_argument("sae", metavar="SAE", help="folder or Hub repository: owner/repo or owner/repo/sub/folder")
    parser.add_argument("--site", help="what it reads in the block, e.g. mlp_out (default: what its files say)")
    parser.add_argument("--format", help="format of its files (default: told from the files)")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--k", type=int, help="active features per token, where its files do not say it")
    parser.add_argument("--input-scale", type=float, help="factor on the input, where its files do not say it")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what an SAE is: format, sizes, norms, where it came from and what it can be used for. Without --block, "
        "list the SAEs in a place. With --model and --data, measure how well it fits that model."
    )
    _add_source(parser)
    parser.add_argument("--block", "--blocks", dest="blocks", type=int, nargs="+", help="decoder blocks, from 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file too")
    group = parser.add_argument_group("how well it fits a model")
    group.add_argument("--model", help="causal language model or adapter: folder or Hub id")
    group.add_argument(
        "--data", help="data file (JSON, JSONL, CSV, Parquet; or folder of them) of texts, or `datasets` id"
    )
    for name, (of_type, help_text) in _FIT_OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=of_type, default=argparse.SUPPRESS, help=help_text)
    parser.set_defaults(run=_inspect)


def _source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("site", "format", "revision", "k", "input_scale")}


def _inspect(arguments: argparse.Namespace) -> None:
    given = [name for name in _FIT_OPTIONS if hasattr(arguments, name)]
    if (arguments.model is None) != (arguments.data is None):
        raise ValueError("Give --model and --data, or neither.")
    if given and arguments.model is None:
        raise ValueError(f"--{given[0].replace('_', '-')} needs --model and --data.")
    from .saes.describe import describe_sae, format_listing, list_place
    from .saes.loading import load_sae

    blocks = arguments.blocks
    if blocks is None:
        listed = list_place(arguments.sae, format=arguments.format, revision=arguments.revision)
        if len(listed) == 1 and listed[0].block is not None:
            blocks = [listed[0].block]
        elif arguments.model is not None:
            raise ValueError(f"Say with --blocks which to measure:\n{format_listing(listed)}")
        else:
            print(format_listing(listed))
            print("\nDescribe one of them with --block N (and --site, where a block has several).")
            _write_json(arguments.json, [sae._asdict() for sae in listed])
            return
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"--blocks names a block more than once: {blocks}.")
    for model in (arguments.model, getattr(arguments, "base_model", None)):
        if model is not None:
            require_model(model)
    saes = [load_sae(arguments.sae, block=block, directions=True, **_source_options(arguments)) for block in blocks]
    described = [describe_sae(sae) for sae in saes]
    print("\n\n".join(map(str, described)))
    record: dict[str, Any] = {"saes": [description.as_dict() for description in described]}
    if arguments.model is not None:
        from .features.fit.fit import FIT_TEXTS, measure_fit
        from .features.fit.verdict import format_fits, judge

        options = {name: getattr(arguments, name) for name in given if name != "base_model"}
        options["text_options"] = FIT_TEXTS.take(options)
        base = getattr(arguments, "base_model", None)
        on_base = [] if base is None else measure_fit(base, saes, arguments.data, **options)
        fits = measure_fit(arguments.model, saes, arguments.data, **options)
        print(f"\n{format_fits(fits, on_base)}")
        record["fits"] = [fit.as_dict() for fit in fits]
        record["on_base_model"] = [fit.as_dict() for fit in on_base]
        pairs = zip(fits, on_base) if on_base else [(fit, None) for fit in fits]
        record["verdicts"] = [judge(fit, other)._asdict() for fit, other in pairs]
    _write_json(arguments.json, record)


def _write_json(file: Path | None, content: Any) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Written: {file}")


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write an SAE in SAELens' layout: cfg.json and sae_weights.safetensors, float32."
    _add_source(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--block", type=int, required=True, help="decoder block, counted from 0")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from .saes.convert import convert_sae

    written = convert_sae(arguments.sae, arguments.out, block=arguments.block, **_source_options(arguments))
    for note in written.notes:
        print(f"Note: {note}")
    print(f"Written: {written.folder} (SAELens, architecture {written.architecture})")
