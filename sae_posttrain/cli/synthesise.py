"""The command `synthesise`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import (
    TEXT_OPTIONS,
    add_batch_size,
    add_model,
    add_options,
    add_sae_options,
    add_seed,
    add_template_kwargs,
)

_NUMBERS: dict[str, tuple[type, str]] = {
    "rows_per_target": (int, "rows wanted for each target (default: 4)"),
    "attempts_per_target": (int, "answers asked for until a target is given up (default: 16)"),
    "max_targets": (int, "most targets, if they are the missing features (default: 100)"),
    "max_rows": (int, "end when so many rows are made"),
    "max_tokens": (int, "end when so many tokens of prompts and answers are spent"),
    "max_seed_rate": (float, "share of the seeds on which a missing feature may fire (default: 0)"),
    "num_passages": (int, "most passages that a request shows (default: 3)"),
    "rewrite_share": (float, "share of attempts that rewrite a seed (default: 0.25)"),
    "min_activation": (float, "activation above which a target fires (default: 0)"),
    "min_tokens": (int, "fewest tokens of a row (default: 8)"),
    "duplicate_threshold": (float, "share of 5-character runs in common that makes a duplicate (default: 0.7)"),
}


def add_synthesise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make rows for a data set that fire features which its rows do not: a generator is asked about each feature, "
        "and a row is kept if the feature fires. The same command goes on with an interrupted run."
    )
    add_model(parser, what="model that the SAE was trained on")
    parser.add_argument("--sae", required=True, help="its SAE: folder or Hub repository")
    parser.add_argument("--block", required=True, type=int, help="decoder block of the targets, counted from 0")
    parser.add_argument("--seeds", required=True, help="the data set to add to: data file, folder or `datasets` id")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["missing"],
        help="numbers of features, a feature set, or `missing`: those that fire on --reference and never on --seeds "
        "(default)",
    )
    parser.add_argument("--reference", help="rows on which the targets fire, which passages are taken from")
    parser.add_argument("--label-column", help="column with a label in seeds and reference")
    parser.add_argument("--what", default="text", help="what a row is, e.g. `hotel review` (default: text)")
    parser.add_argument("--templates", type=Path, help="JSON file with other requests: new, rewrite, new_question, …")
    parser.add_argument(
        "--positions",
        choices=["response", "prompt", "all", "last"],
        default="response",
        help="tokens on which a target must fire (default: response)",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--check-sae", nargs="+", help="SAEs that only measure the result (default: --sae)")
    parser.add_argument(
        "--check-blocks", type=int, nargs="+", help="their blocks; with --sae alone, other blocks of it"
    )
    parser.add_argument(
        "--all-targets", action="store_true", help="make rows for targets that fire on the seeds already too"
    )
    add_options(parser, _NUMBERS)
    group = parser.add_argument_group("generator", "One of two: a model on this machine, or a server.")
    group.add_argument("--generator", metavar="MODEL", help="a language model: folder, GGUF file or Hub id")
    group.add_argument("--dtype", help="data type of its weights, e.g. float32 (default: as stored)")
    group.add_argument(
        "--strength", type=float, help="push its answers along the target, in median residual norms (default: 0)"
    )
    group.add_argument("--endpoint", metavar="URL", help="server of OpenAI's interface, e.g. http://localhost:8000/v1")
    group.add_argument("--endpoint-model", metavar="NAME", help="the model's name there; the key is in OPENAI_API_KEY")
    group.add_argument("--concurrency", type=int, help="requests at once (default: 8)")
    group.add_argument(
        "--completions",
        action="store_true",
        help="the model is a base model: it goes on with a list of examples, one on each line, instead of answering",
    )
    group.add_argument(
        "--unfinished",
        choices=["trim", "drop"],
        default="trim",
        help="what becomes of an answer that was cut: its whole sentences, or nothing (default: trim)",
    )
    group.add_argument("--max-new-tokens", type=int, default=256, help="longest answer, in tokens (default: 256)")
    group.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1.0)")
    group.add_argument("--top-p", type=float, default=0.95, help="nucleus of the sampling (default: 0.95)")
    add_options(parser, {name: TEXT_OPTIONS[name] for name in ("text_column", "split", "max_length")})
    add_batch_size(parser, "attempts", 16)
    add_template_kwargs(parser)
    add_sae_options(parser)
    add_seed(parser, "requests and sampling")
    parser.set_defaults(run=_synthesise)


def _synthesise(arguments: argparse.Namespace) -> None:
    _check(arguments)
    require_model(arguments.model)
    if arguments.generator is not None:
        require_model(arguments.generator)
    from ..analysis.synthesis.attempts import REPORT_FILE, ROWS_FILE
    from ..analysis.synthesis.prompts import Templates
    from ..analysis.synthesis.synthesise import synthesise
    from ..features.read.text_options import TextOptions

    given = vars(arguments)
    options = {name: given[name] for name in ("text_column", "split", "max_length") if name in given}
    made = synthesise(
        arguments.model,
        arguments.sae,
        arguments.seeds,
        _targets(arguments.targets),
        _generator(arguments),
        output_dir=arguments.out,
        reference=arguments.reference,
        label_column=arguments.label_column,
        what=arguments.what,
        templates=None if arguments.templates is None else Templates.from_dict(_read_templates(arguments.templates)),
        positions=arguments.positions,
        block=arguments.block,
        site=arguments.site,
        check_sae=arguments.check_sae,
        check_blocks=arguments.check_blocks,
        only_missing=not arguments.all_targets,
        batch_size=arguments.batch_size,
        text_options=TextOptions(**options, chat_template_kwargs=arguments.chat_template_kwargs),
        k=arguments.k,
        format=arguments.format,
        revision=arguments.revision,
        seed=arguments.seed,
        **{name: given[name] for name in _NUMBERS if name in given},
    )
    print(made)
    print(f"Written: {arguments.out / ROWS_FILE}, {arguments.out / REPORT_FILE}")


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.generator is None) == (arguments.endpoint is None):
        raise ValueError("Say what writes the rows, with one of two: --generator MODEL, or --endpoint URL.")
    if (arguments.endpoint is None) != (arguments.endpoint_model is None):
        raise ValueError("--endpoint and --endpoint-model belong together: the server, and the model's name there.")
    wrong = ("dtype", "strength") if arguments.generator is None else ("concurrency",)
    for name in wrong:
        if getattr(arguments, name) is not None:
            needed = "--generator" if arguments.generator is None else "--endpoint"
            raise ValueError(f"--{name} needs {needed}.")
    if arguments.check_sae is not None and arguments.check_blocks is None:
        raise ValueError("--check-sae needs --check-blocks.")


def _targets(words: list[str]) -> Any:
    if all(word.isdecimal() for word in words):
        return [int(word) for word in words]
    if len(words) > 1:
        raise ValueError(f"--targets takes numbers of features, or one feature set; got {' '.join(words)}.")
    return words[0]


def _generator(arguments: argparse.Namespace) -> Any:
    from ..analysis.synthesis.endpoint_generator import EndpointGenerator
    from ..analysis.synthesis.local_generator import LocalGenerator

    sampling = {name: getattr(arguments, name) for name in ("temperature", "top_p", "unfinished", "completions")}
    if arguments.endpoint is not None:
        return EndpointGenerator(
            arguments.endpoint_model,
            base_url=arguments.endpoint,
            max_tokens=arguments.max_new_tokens,
            concurrency=arguments.concurrency or 8,
            **sampling,
        )
    return LocalGenerator(
        arguments.generator,
        max_new_tokens=arguments.max_new_tokens,
        strength=arguments.strength or 0.0,
        chat_template_kwargs=arguments.chat_template_kwargs,
        model_kwargs={"dtype": arguments.dtype} if arguments.dtype else None,
        **sampling,
    )


def _read_templates(path: Path) -> dict[str, str]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(held, dict) or not all(isinstance(each, str) for each in held.values()):
        raise ValueError(f'{path} must hold an object of templates: {{"new": "Write a {{label}} {{what}} …"}}.')
    return held
