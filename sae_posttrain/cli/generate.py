"""The command `generate`: answers without and with steering, or a sweep over the strength."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import add_batch_size, add_model, add_prompts, add_seed, add_template_kwargs, add_texts, flag


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer prompts without and with steering, side by side, with foreign characters and loops marked. With "
        "--sweep, measure faults, language and loss over the strength, so that a strength is chosen and not guessed."
    )
    add_model(parser)
    parser.add_argument("--features", required=True, help="feature set: file, folder or Hub repository")
    add_strength(parser, required=False)
    parser.add_argument(
        "--sweep",
        type=float,
        nargs=3,
        metavar=("LOW", "HIGH", "NUM"),
        help="measure NUM strengths from LOW to HIGH; --strength is multiplied by them (default: 1 for all features)",
    )
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="questions, each a user's turn in a chat model")
    add_prompts(parser, required=False)
    parser.add_argument("--plain", action="store_true", help="send --prompt as it is, without the chat template")
    parser.add_argument("--limit", type=int, help="number of --prompts to use, from the first on (default: all)")
    parser.add_argument(
        "--lang", help="language of the answers (default: as --prompts say, or by the prompt's script)"
    )
    parser.add_argument("--group-column", help="column with the language of the answer (default: lang)")
    parser.add_argument("--target-lang", help="mark switches into this language only (default: into any other script)")
    add_steering(parser)
    add_sampling(parser)
    add_batch_size(parser, "answers generated", 32)
    add_template_kwargs(parser)
    add_seed(parser, "the sampling")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page too")
    group = parser.add_argument_group("only with --sweep", "The loss is measured on --texts, or on the plain answers.")
    add_texts(group, required=False)
    group.add_argument("--max-texts", type=int, help="texts whose loss is measured (default: 32)")
    group.add_argument("--picture", type=Path, metavar="FILE", help="draw the sweep, as .png, .svg or .pdf")
    parser.set_defaults(run=_generate)


def add_strength(parser: Any, required: bool) -> None:
    """The option of every command that pushes features."""
    parser.add_argument(
        "--strength",
        nargs="+",
        required=required,
        metavar="NAME=NUMBER",
        help="how far to push each named feature, such as loop=-0.8; one number pushes all",
    )


def add_steering(parser: Any) -> None:
    """How a push is given and where it acts."""
    parser.add_argument(
        "--unit",
        choices=["norm", "raw"],
        default="norm",
        help="unit of the strengths: median residual norms, or raw lengths (default: norm)",
    )
    parser.add_argument(
        "--positions",
        choices=["generated", "all"],
        default="generated",
        help="push from the end of the prompt on, or the prompt too (default: generated)",
    )
    parser.add_argument("--allow-base-model", help="name of another model that these features may steer")


def add_sampling(parser: Any) -> None:
    """How answers are sampled."""
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer, in tokens (default: 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1.0)")
    parser.add_argument("--top-p", type=float, default=0.8, help="nucleus of the sampling (default: 0.8)")


def _generate(arguments: argparse.Namespace) -> None:
    _check(arguments)
    require_model(arguments.model)
    from ..features.find.answers import Sampling
    from ..features.read.loading import load_model_and_tokenizer
    from ..features.read.texts import check_prompts
    from ..features.set.feature_set import FeatureSet
    from ..steering.dose import dose_curve, steps_between
    from ..steering.questions import as_rows, read_asked
    from ..steering.side_by_side import answer_side_by_side
    from ..steering.strengths import parse_strengths

    feature_set = FeatureSet.from_pretrained(arguments.features)
    strengths = parse_strengths(arguments.strength, feature_set) if arguments.strength else None
    sampling = Sampling(
        arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed, arguments.batch_size
    )
    steps = steps_between(*arguments.sweep) if arguments.sweep else None
    texts = _texts(arguments.texts, arguments.max_texts or 32) if arguments.texts else None
    if arguments.prompts is not None:
        check_prompts(arguments.prompts)
    model, tokenizer = load_model_and_tokenizer(arguments.model, None)
    asked = arguments.prompts or as_rows(arguments.prompt, tokenizer, plain=arguments.plain)
    questions = read_asked(
        asked,
        tokenizer,
        lang=arguments.lang,
        group_column=arguments.group_column or "lang",
        chat_template_kwargs=arguments.chat_template_kwargs,
    )[: arguments.limit]
    options = {name: getattr(arguments, name) for name in ("unit", "positions", "target_lang", "allow_base_model")}
    settings = {"model": Path(arguments.model).name, "features": Path(arguments.features).name}
    common = (model, tokenizer, feature_set)
    if steps is not None:
        curve = dose_curve(*common, steps, questions, sampling, weights=strengths, texts=texts, **options)
        _show_curve(curve, arguments, settings)
    else:
        assert strengths is not None
        answers = answer_side_by_side(*common, strengths, questions, sampling, **options)
        _show_answers(answers, arguments, settings)


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise ValueError('Say what to answer, with one of two: --prompt "…" or --prompts FILE.')
    if arguments.strength is None and arguments.sweep is None:
        raise ValueError("Say how far to push: --strength NAME=NUMBER, or --sweep LOW HIGH NUM to try several.")
    for name in ("plain", "limit"):
        other = "prompt" if name == "plain" else "prompts"
        if getattr(arguments, name) and getattr(arguments, other) is None:
            raise ValueError(f"{flag(name)} needs {flag(other)}.")
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be 1 or more, got {arguments.limit}.")
    for name in ("texts", "picture"):
        if getattr(arguments, name) is not None and arguments.sweep is None:
            raise ValueError(f"{flag(name)} needs --sweep LOW HIGH NUM.")
    if arguments.max_texts is not None and (arguments.texts is None or arguments.max_texts < 1):
        raise ValueError("--max-texts needs --texts, and must be 1 or more.")


def _texts(path: str, num: int) -> list[str]:
    from ..features.read.texts import located_rows
    from ..row_checks import require_text

    rows = [(where, row) for (where, row), _ in zip(located_rows(path), range(num))]
    return [require_text(row, "text", where) for where, row in rows]


def _show_answers(answers: Any, arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps({**settings, **answers.as_dict()}, ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from ..steering.terminal import print_side_by_side

        print_side_by_side(answers, Console())
    if arguments.html is not None:
        from ..steering.page import write_side_by_side

        title = f"{settings['model']}, plain and steered"
        _say(write_side_by_side(answers, arguments.html, title=title, settings=settings), arguments)


def _show_curve(curve: Any, arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    print(json.dumps({**settings, **curve.as_dict()}, indent=2) if arguments.json else curve)
    if arguments.picture is not None:
        from ..steering.picture import draw_dose_curve

        _say(draw_dose_curve(curve, arguments.picture), arguments)
    if arguments.html is not None:
        from ..steering.page import write_dose_curve

        title = f"{settings['model']} over the strength"
        _say(write_dose_curve(curve, arguments.html, title=title, settings=settings), arguments)


def _say(path: Path, arguments: argparse.Namespace) -> None:
    print(f"Written: {path}", file=sys.stderr if arguments.json else sys.stdout)
