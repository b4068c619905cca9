"""The command `evaluate`: answers to prompts, capability tasks, or both. Thin, as `cli.py`, which lists it."""

import argparse
import json
from pathlib import Path
from typing import Any

from .model_source import require_model

_DATA_OPTIONS: dict[str, dict[str, Any]] = {
    "target_lang": {"help": "switches into this language count; 'any' counts all (default: zh)"},
    "lid": {
        "nargs": "+",
        "metavar": "LANG",
        "help": "tell these languages apart line by line, also where they share a script "
        "(pip install 'sae_posttrain[lid]')",
    },
    "group_column": {"help": "column with the answer's language (default: lang)"},
    "max_new_tokens": {"type": int, "help": "longest answer (default: 512)"},
    "temperature": {"type": float, "help": "0 is greedy (default: 1.0)"},
    "top_p": {"type": float, "help": "nucleus of the sampling (default: 0.8)"},
    "num_samples": {"type": int, "help": "answers to each prompt (default: 1)"},
}
_TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {
        "action": "store_true",
        "help": "ask without the chat template, as most published figures of base models were made",
    },
    "include_path": {"metavar": "DIR", "help": "folder with YAML files of own tasks"},
    "num_fewshot": {"type": int, "help": "solved examples before each question (default: what each task says)"},
    "margin": {"type": float, "help": "largest acceptable loss against --compare, as a rate (default: 0.02)"},
    "confirm_run_unsafe_code": {
        "action": "store_true",
        "help": "allow tasks that run code which the model writes, or which is downloaded",
    },
}
_NEEDED = {"data": _DATA_OPTIONS, "tasks": _TASK_OPTIONS}
"""Options that only the evaluation of prompts (--data), or of tasks (--tasks), can use."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "With --data, sample answers to prompts and measure how often they switch language or repeat endlessly. "
        "With --tasks, measure capability with lm-evaluation-harness (pip install 'sae_posttrain[eval]')."
    )
    parser.add_argument("--model", required=True, help="causal language model or adapter: folder or Hub id")
    parser.add_argument("--data", help="data file (JSON, JSONL, CSV, Parquet) of prompts with their language")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="names of tasks or groups, or own .yaml files")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--compare", type=Path, help="folder of another evaluation on the same prompts or tasks")
    add_template_kwargs(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="answers or requests at once (default: 32)")
    parser.add_argument(
        "--limit",
        type=int,
        help="use so many prompts only, drawn by the seed with every language among them, or the first so many "
        "documents of a task",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --limit, the sampling, and few-shot examples (default: 0)"
    )
    parser.add_argument("--device", help="where to put the model (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="of the model's weights, e.g. bfloat16 (default: as stored)")
    for needed, options in _NEEDED.items():
        group = parser.add_argument_group(f"only with --{needed}")
        for name, how in options.items():
            group.add_argument(_flag(name), default=argparse.SUPPRESS, **how)
    parser.set_defaults(run=_evaluate)


def add_template_kwargs(parser: argparse.ArgumentParser) -> None:
    """The option of every command that sends messages to a model."""
    parser.add_argument(
        "--chat-template-kwargs",
        type=_json_object,
        metavar="JSON",
        help="variables of the chat template, for prompts and texts that are messages: '{\"enable_thinking\": false}'",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object; write '{{\"enable_thinking\": false}}'")
    return value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(arguments: argparse.Namespace, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in options if hasattr(arguments, name)}


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.data is None and arguments.tasks is None:
        raise ValueError("Give --data (prompts), --tasks (capability) or both.")
    for needed, options in _NEEDED.items():
        given = _given(arguments, options)
        if given and getattr(arguments, needed) is None:
            raise ValueError(f"{_flag(next(iter(given)))} needs --{needed}.")
    if hasattr(arguments, "margin") and arguments.compare is None:
        raise ValueError("--margin needs --compare, the evaluation against which a loss is counted.")
    require_model(arguments.model)
    if arguments.tasks is not None:
        from .measure.capability.harness import require_harness

        require_harness()
    common: dict[str, Any] = {
        "output_dir": arguments.out,
        "compare": arguments.compare,
        "chat_template_kwargs": arguments.chat_template_kwargs,
        "batch_size": arguments.batch_size,
        "limit": arguments.limit,
        "seed": arguments.seed,
        "device": arguments.device,
        "model_kwargs": {"dtype": arguments.dtype} if arguments.dtype else None,
    }
    if arguments.data is not None:
        from .measure.answers.evaluation import evaluate
        from .measure.answers.summary import format_evaluation

        of_data = _given(arguments, _DATA_OPTIONS)
        if of_data.get("target_lang") == "any":
            of_data["target_lang"] = None
        if "lid" in of_data:
            of_data["lid_languages"] = of_data.pop("lid")
        print(format_evaluation(evaluate(arguments.model, arguments.data, **common, **of_data)))
    if arguments.tasks is not None:
        from .measure.capability.task_summary import format_tasks
        from .measure.capability.tasks import evaluate_tasks

        of_tasks = _given(arguments, _TASK_OPTIONS)
        if of_tasks.pop("plain", False):
            of_tasks["chat_template"] = False
            if arguments.data is not None:  # the variables are for the prompts alone
                of_tasks["chat_template_kwargs"] = None
        print(format_tasks(evaluate_tasks(arguments.model, arguments.tasks, **(common | of_tasks))))
