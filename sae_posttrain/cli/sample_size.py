"""The command `sample-size`."""

import argparse


def add_sample_size(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compute how many prompts it takes to see a rate change, before the run."
    parser.add_argument("--before", type=float, required=True, help="rate now, from 0 to 1: 0.03 is 3 %%")
    parser.add_argument("--after", type=float, required=True, help="rate to detect, from 0 to 1")
    parser.add_argument("--power", type=float, default=0.8, help="probability to see the change (default: 0.8)")
    parser.add_argument("--alpha", type=float, default=0.05, help="probability of a false alarm (default: 0.05)")
    parser.add_argument("--paired", action="store_true", help="both models answer the same prompts")
    parser.add_argument(
        "--overlap", type=float, default=0.0, help="share of the later failures that failed before too (default: 0)"
    )
    parser.add_argument("--answers-per-prompt", type=int, default=1, help="answers to each prompt (default: 1)")
    parser.add_argument("--icc", type=float, help="correlation of two answers to one prompt, from 0 to 1")
    parser.set_defaults(run=_sample_size)


def _sample_size(arguments: argparse.Namespace) -> None:
    from ..measure.statistics.power import sample_size

    names = ("power", "alpha", "paired", "overlap", "answers_per_prompt", "icc")
    options = {name: getattr(arguments, name) for name in names}
    num_prompts = sample_size(arguments.before, arguments.after, **options)
    who = "answered by both models" if arguments.paired else "in each arm"
    each = ""
    if arguments.answers_per_prompt > 1:
        num_answers = num_prompts * arguments.answers_per_prompt
        each = f", {arguments.answers_per_prompt} answers to each ({num_answers:,} a model),"
    change = "fall" if arguments.after < arguments.before else "rise"
    print(
        f"{num_prompts:,} prompts {who}{each} show a {change} from {_percent(arguments.before)} to "
        f"{_percent(arguments.after)} with {_percent(arguments.power)} power "
        f"(two-sided test at {_percent(arguments.alpha)})."
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"
