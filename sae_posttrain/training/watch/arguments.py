"""The fields by which `sae-posttrain sft` and `grpo` watch a training."""

from dataclasses import dataclass, field
from typing import Any

from .callback import FaultWatchCallback


@dataclass
class WatchArguments:
    """
    Fields of `sae-posttrain sft` and `grpo` for a [`FaultWatchCallback`].

    Parameters:
        watch_prompts (`str`, *optional*):
            File of prompts that the model answers during training, in the form that `sae-posttrain evaluate` takes.
            How often the answers switch language, loop or are in the right language is logged as `watch/…`, and the
            answers go to `watch.jsonl`.
        watch_every (`int`, *optional*):
            Steps between two such watches. By default the model is watched at every evaluation.
        watch_max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest watched answer, in tokens.
        watch_target_lang (`str`, *optional*, defaults to `"zh"`):
            Switches into this language count; `any` counts those into any other script.
        watch_engine (`str`, *optional*, defaults to `"transformers"`):
            What generates the watched answers: `transformers`, or `vllm`, the engine that `use_vllm` gives a trainer.
    """

    watch_prompts: str | None = field(
        default=None,
        metadata={
            "help": "Prompts (as `evaluate` takes them) that the model answers during training; rates of faults are "
            "logged as watch/…, answers go to watch.jsonl."
        },
    )
    watch_every: int | None = field(
        default=None,
        metadata={"help": "Steps between two watches. By default the model is watched at every evaluation."},
    )
    watch_max_new_tokens: int = field(default=256, metadata={"help": "Longest watched answer, in tokens."})
    watch_target_lang: str = field(
        default="zh",
        metadata={"help": "Watched switches: into this language, or `any` for any other script."},
    )
    watch_engine: str = field(
        default="transformers",
        metadata={"help": "Generates watched answers: `transformers`, or `vllm`, the trainer's engine (`use_vllm`)."},
    )


def watch_of(script_args: Any) -> list[FaultWatchCallback]:
    """The callback that the fields ask for, in a list; its prompts are read and checked. An empty list for none."""
    if script_args.watch_prompts is None:
        if script_args.watch_every is not None:
            raise ValueError("`watch_every` needs `watch_prompts`, the file of prompts to answer.")
        return []
    target = script_args.watch_target_lang
    return [
        FaultWatchCallback(
            script_args.watch_prompts,
            every=script_args.watch_every,
            max_new_tokens=script_args.watch_max_new_tokens,
            target_lang=None if target == "any" else target,
            engine=script_args.watch_engine,
        )
    ]
