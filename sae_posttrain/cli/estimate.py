"""The command `estimate`."""

import argparse
from pathlib import Path


def add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compute how much memory a recipe takes on each device, from the model's config.json alone. Options that are "
        "not listed here are fields of the recipe: --max_length 4096."
    )
    parser.add_argument("--config", required=True, type=Path, help="YAML file for `sft` or `grpo`")
    parser.add_argument("--num-processes", type=int, default=1, help="devices (default: 1)")
    parser.add_argument(
        "--sharded",
        action="store_true",
        help="divide weights, gradients and optimiser state among devices (FSDP2, ZeRO-3)",
    )
    parser.add_argument("--prompt-length", type=int, default=512, help="tokens of a prompt, for `grpo` (default: 512)")
    parser.set_defaults(run=_estimate, more=[])


def _estimate(arguments: argparse.Namespace) -> None:
    from ..model_source import require_model
    from .train import command_of, read_settings

    settings = read_settings(command_of(arguments.config), ["--config", str(arguments.config), *arguments.more])
    if settings.get("model_name_or_path"):
        require_model(str(settings["model_name_or_path"]), settings.get("model_revision"))
    from ..estimate.recipe import estimate_memory

    print(
        estimate_memory(
            arguments.config,
            arguments.more,
            num_processes=arguments.num_processes,
            sharded=arguments.sharded,
            prompt_length=arguments.prompt_length,
        )
    )
