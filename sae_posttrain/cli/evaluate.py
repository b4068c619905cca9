"""The command `evaluate`: answers to prompts, capability tasks, or both."""

import argparse
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import (
    add_batch_size,
    add_model,
    add_old_name,
    add_out,
    add_prompts,
    add_seed,
    add_template_kwargs,
    flag,
    send_vllm_logs_to_stderr,
)

_PROMPT_OPTIONS: dict[str, dict[str, Any]] = {
    "target_lang": {"help": "count switches into this language; 'any' counts all (default: zh)"},
    "lid": {
        "nargs": "+",
        "metavar": "LANG",
        "help": "identify the language of each line among these, also where they share a script "
        "(pip install 'sae_posttrain[lid]')",
    },
    "group_column": {"help": "column with the language of the answer (default: lang)"},
    "max_new_tokens": {"type": int, "help": "longest answer, in tokens (default: 512)"},
    "temperature": {"type": float, "help": "sampling temperature; 0 is greedy (default: 1.0)"},
    "top_p": {"type": float, "help": "nucleus of the sampling (default: 0.8)"},
    "num_samples": {"type": int, "help": "answers to each prompt (default: 1)"},
    "engine": {
        "choices": ("transformers", "vllm"),
        "help": "what samples the answers; vllm pays with many answers and a large --batch-size "
        "(pip install 'sae_posttrain[vllm]'; default: transformers)",
    },
}
_TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {
        "action": "store_true",
        "help": "ask without the chat template, as most published figures of base models do",
    },
    "include_path": {"metavar": "DIR", "help": "folder with YAML files of your own tasks"},
    "num_fewshot": {"type": int, "help": "solved examples before each question (default: the task's own number)"},
    "margin": {"type": float, "help": "largest acceptable loss against --compare, as a rate (default: 0.02)"},
    "confirm_run_unsafe_code": {
        "action": "store_true",
        "help": "allow tasks that run code that the model writes or that is downloaded",
    },
}
_NEEDED = {"prompts": _PROMPT_OPTIONS, "tasks": _TASK_OPTIONS}
"""Options that only the evaluation of prompts (--prompts), or of tasks (--tasks), can use."""


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "With --prompts, sample answers to prompts and measure how often they switch language or repeat endlessly. "
        "With --tasks, measure capability with lm-evaluation-harness (pip install 'sae_posttrain[eval]')."
    )
    add_model(parser, what="causal language model or adapter")
    add_prompts(parser, required=False, more=". A column names the language of the answer")
    add_old_name(parser, "--data", "prompts")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names of tasks or groups, or .yaml files of your own"
    )
    add_out(parser, "folder for the results")
    parser.add_argument("--compare", type=Path, help="folder of another evaluation on the same prompts or tasks")
    add_template_kwargs(parser)
    add_batch_size(parser, "answers or requests", 32)
    parser.add_argument(
        "--limit",
        type=int,
        help="number of prompts to use, drawn by the seed from every language, or of first documents of each task",
    )
    add_seed(parser, "--limit, the sampling and few-shot examples")
    parser.add_argument("--device", help="device for the model (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="data type of the model's weights, e.g. bfloat16 (default: as stored)")
    for needed, options in _NEEDED.items():
        group = parser.add_argument_group(f"only with --{needed}")
        for name, how in options.items():
            group.add_argument(flag(name), default=argparse.SUPPRESS, **how)
    parser.set_defaults(run=_evaluate)


def _given(arguments: argparse.Namespace, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in options if hasattr(arguments, name)}


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.prompts is None and arguments.tasks is None:
        raise ValueError("Give --prompts, --tasks (capability) or both.")
    for needed, options in _NEEDED.items():
        given = _given(arguments, options)
        if given and getattr(arguments, needed) is None:
            raise ValueError(f"{flag(next(iter(given)))} needs --{needed}.")
    if hasattr(arguments, "margin") and arguments.compare is None:
        raise ValueError("--margin needs --compare, the evaluation against which a loss is counted.")
    require_model(arguments.model)
    if arguments.tasks is not None:
        from ..measure.capability.harness import require_harness

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
    if arguments.prompts is not None:
        from ..measure.answers.evaluation import evaluate
        from ..measure.answers.summary import format_evaluation

        of_prompts = _given(arguments, _PROMPT_OPTIONS)
        if of_prompts.get("engine") == "vllm":
            send_vllm_logs_to_stderr()
        if of_prompts.get("target_lang") == "any":
            of_prompts["target_lang"] = None
        if "lid" in of_prompts:
            of_prompts["lid_languages"] = of_prompts.pop("lid")
        print(format_evaluation(evaluate(arguments.model, arguments.prompts, **common, **of_prompts)))
    if arguments.tasks is not None:
        from ..measure.capability.task_summary import format_tasks
        from ..measure.capability.tasks import evaluate_tasks

        of_tasks = _given(arguments, _TASK_OPTIONS)
        if of_tasks.pop("plain", False):
            of_tasks["chat_template"] = False
            if arguments.prompts is not None:  # the variables are for the prompts only
                of_tasks["chat_template_kwargs"] = None
        print(format_tasks(evaluate_tasks(arguments.model, arguments.tasks, **(common | of_tasks))))
