"""The command `inspect`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import TEXT_OPTIONS, add_model, add_old_name, add_options, add_sae_options, add_texts, flag

_FIT_OPTIONS: dict[str, tuple[type, str]] = {
    "base_model": (str, "model that the SAE was trained on: it is measured too, for comparison"),
    **TEXT_OPTIONS,
    "group_column": (str, "column with the group of a text; rows may lack it (default: lang)"),
    "max_texts": (int, "texts to draw (default: 200)"),
    "batch_size": (int, "texts in one forward pass (default: 8)"),
    "seed": (int, "seed of the choice of texts (default: 0)"),
}
"""Options of `inspect` that need `--model`: their type and help."""


def add_source(parser: argparse.ArgumentParser) -> None:
    """The arguments of `load_sae`, except the block."""
    parser.add_argument("sae", metavar="SAE", help="folder or Hub repository: owner/repo or owner/repo/sub/folder")
    add_sae_options(parser)
    parser.add_argument("--input-scale", type=float, help="factor on the input, if the SAE's files do not say it")


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("site", "format", "revision", "k", "input_scale")}


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Describe an SAE: format, sizes, norms, origin and what it can be used for. Without --block, list the SAEs in "
        "a folder or repository. With --model and --texts, measure how well it fits that model."
    )
    add_source(parser)
    parser.add_argument("--block", "--blocks", dest="blocks", type=int, nargs="+", help="decoder blocks, from 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write everything to, in addition")
    add_old_name(parser, "--json", "out", type=Path)
    group = parser.add_argument_group("how well it fits a model")
    add_model(group, required=False, what="causal language model or adapter")
    add_texts(group, required=False)
    add_old_name(group, "--data", "texts")
    add_options(group, _FIT_OPTIONS)
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    given = [name for name in _FIT_OPTIONS if hasattr(arguments, name)]
    if (arguments.model is None) != (arguments.texts is None):
        raise ValueError("Give --model and --texts, or neither.")
    if given and arguments.model is None:
        raise ValueError(f"{flag(given[0])} needs --model and --texts.")
    from ..saes.describe import describe_sae, format_listing, list_place
    from ..saes.loading import load_sae

    blocks = arguments.blocks
    if blocks is None:
        listed = list_place(arguments.sae, format=arguments.format, revision=arguments.revision)
        if len(listed) == 1 and listed[0].block is not None:
            blocks = [listed[0].block]
        elif arguments.model is not None:
            raise ValueError(f"Name with --blocks the ones to measure:\n{format_listing(listed)}")
        else:
            print(format_listing(listed))
            print("\nDescribe one of them with --block N (and --site, where a block has several).")
            _write_json(arguments.out, [sae._asdict() for sae in listed])
            return
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"--blocks names a block more than once: {blocks}.")
    for model in (arguments.model, getattr(arguments, "base_model", None)):
        if model is not None:
            require_model(model)
    saes = [load_sae(arguments.sae, block=block, directions=True, **source_options(arguments)) for block in blocks]
    described = [describe_sae(sae) for sae in saes]
    print("\n\n".join(map(str, described)))
    record: dict[str, Any] = {"saes": [description.as_dict() for description in described]}
    if arguments.model is not None:
        from ..features.fit.fit import FIT_TEXTS, measure_fit
        from ..features.fit.verdict import format_fits, judge

        options = {name: getattr(arguments, name) for name in given if name != "base_model"}
        options["text_options"] = FIT_TEXTS.take(options)
        base = getattr(arguments, "base_model", None)
        on_base = [] if base is None else measure_fit(base, saes, arguments.texts, **options)
        fits = measure_fit(arguments.model, saes, arguments.texts, **options)
        print(f"\n{format_fits(fits, on_base)}")
        record["fits"] = [fit.as_dict() for fit in fits]
        record["on_base_model"] = [fit.as_dict() for fit in on_base]
        pairs = zip(fits, on_base) if on_base else [(fit, None) for fit in fits]
        record["verdicts"] = [judge(fit, other)._asdict() for fit, other in pairs]
    _write_json(arguments.out, record)


def _write_json(file: Path | None, content: Any) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Written: {file}")
