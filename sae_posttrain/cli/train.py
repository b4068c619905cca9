"""
The commands `sft` and `grpo`. Their options are the fields of the settings, which TRL's own parser reads.

Help, and mistakes in settings and data, come before torch and TRL are imported.
"""

import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from ..measure.answers.prompts import read_prompts
from ..measure.answers.rows import is_data_file, read_rows
from ..model_source import require_model
from ..row_checks import located
from ..training.data import require_data_file
from ..training.fields import Field, fields_of
from ..training.gate import Check, PromptRows, TrainingRows, rows_of_rewards
from .errors import MISTAKES, in_one_line, is_ours, mistake

_FROM_TRL = {
    "model_name_or_path": "the model to train: folder, Hub id or GGUF file",
    "dataset_name": "the data: JSON, JSONL, CSV or Parquet file, or Hub id",
    "output_dir": "folder for the model and its checkpoints",
    "learning_rate": "peak learning rate",
    "num_train_epochs": "passes over the data",
    "max_steps": "optimiser steps, instead of passes over the data",
    "per_device_train_batch_size": "rows in a micro-batch of a device",
    "gradient_accumulation_steps": "micro-batches in a step",
    "max_length": "tokens kept of each row",
    "assistant_only_loss": "train on the assistant's turns only",
    "max_completion_length": "longest rollout, in tokens",
    "num_generations": "rollouts of a prompt",
    "use_peft": "train LoRA adapters",
    "use_cpu": "train on the CPU",
    "resume_from_checkpoint": "`true`, or a checkpoint folder: continue from there",
}
"""Fields of TRL and transformers that most recipes set, with a short help text."""

_TITLES = {"sft": "Fine-tune with SASFTTrainer", "grpo": "Train with SteeredGRPOTrainer"}


def train(command: str, arguments: list[str]) -> int:
    """Run `sft` or `grpo`, and return the exit status."""
    arguments = [
        part for each in arguments for part in (each.split("=", 1) if each.startswith("--config=") else [each])
    ]
    if {"-h", "--help"} & set(arguments) and (text := short_help(command)) is not None:
        print(text)
        return 0
    wants_all = {"-h", "--help", "--help-all"} & set(arguments)
    try:
        if not wants_all:
            check_command(command, arguments)
        script: Any = import_module(f"..{'sft' if command == 'sft' else 'rl'}.script", __package__)
        from ..training.script import parse_settings, train_and_save

        given = ["--help"] if wants_all else arguments
        script_args, *settings = parse_settings(script.ARGUMENTS, f"sae-posttrain {command}", given)
        trainer = script.make_trainer(script_args, *settings)
    except MISTAKES as error:
        return mistake(in_one_line(error))
    try:
        train_and_save(trainer, script_args)
    except ValueError as error:
        if not is_ours(error):
            raise  # a reward of the user, or a library, raised it: the traceback is needed
        return mistake(in_one_line(error))
    return 0


def short_help(command: str) -> str | None:
    """
    The help of a command: the fields of this package, and the most common fields of TRL. Returns `None` if the fields
    cannot be known without importing them.
    """
    fields = fields_of(command)
    if fields is None:
        return None
    lines = [
        f"usage: sae-posttrain {command} --config FILE.yaml [--FIELD VALUE ...]",
        "",
        f"{_TITLES[command]}. Set fields in the YAML file or on the command line, which takes precedence.",
        "Hyphens work in place of underscores.",
        "",
        "options:",
        *_entry("--config FILE.yaml", "settings by field name"),
        *_entry("--help", "this help"),
        *_entry("--help-all", "every field, those of TRL and transformers too"),
        "",
        "fields of this package:",
    ]
    for field in fields.values():
        if field.is_ours:
            lines += _entry(f"--{field.name}", f"{field.help}{_default(field)}")
    lines += ["", "fields of TRL that most recipes set (all of them: --help-all):"]
    for name, text in _FROM_TRL.items():
        if name in fields:
            lines += _entry(f"--{name}", text)
    return "\n".join(lines)


def _entry(flag: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, 92) or [""]
    if len(flag) > 26:
        return [f"  {flag}", *(f"{'':30}{line}" for line in wrapped)]
    return [f"  {flag:28}{wrapped[0]}", *(f"{'':30}{line}" for line in wrapped[1:])]


def _default(field: Field) -> str:
    if field.default is None:
        return ""
    shown = ", ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
    return f" (default: {shown})"


def check_command(command: str, arguments: Sequence[str]) -> None:
    """
    Check settings and data of `sft` or `grpo` without torch: the YAML file, the names of the fields, the model's
    folder, the feature set's file, and every row of a local data file.
    """
    settings = read_settings(command, arguments)
    if settings.get("datasets"):
        rows = None
    else:
        name = settings.get("dataset_name")
        if not name:
            raise ValueError("Name the training data: `dataset_name` (a data file or a Hub id) or `datasets`.")
        rows = str(name)
        require_data_file(rows)
    _check_watched(settings)
    model = settings.get("model_name_or_path")
    if rows is not None and is_data_file(rows):
        _check_rows(rows, _check_of(command, settings))
    if not model:
        raise ValueError("Name the model: `model_name_or_path` (a folder, a GGUF file or a Hub id).")
    require_model(str(model), settings.get("model_revision"))
    features = settings.get("features")
    if isinstance(features, str) and features.endswith(".safetensors") and not Path(features).expanduser().is_file():
        raise FileNotFoundError(
            f"There is no feature set {features} (`features`). `sae-posttrain find-features` writes one."
        )


def _check_watched(settings: Mapping[str, Any]) -> None:
    prompts = settings.get("watch_prompts")
    if prompts is not None:
        read_prompts(str(prompts), group_column="lang", target_lang=None)
    elif settings.get("watch_every") is not None:
        raise ValueError("`watch_every` needs `watch_prompts`, the file of prompts to answer.")
    engine = settings.get("watch_engine", "transformers")
    if engine not in ("transformers", "vllm"):
        raise ValueError(f"`watch_engine` is one of transformers, vllm; got {engine!r}.")
    if engine == "vllm" and str(settings.get("use_vllm")).lower() != "true":
        raise ValueError(
            "`watch_engine` is `vllm`, and this training has no engine of vLLM to ask. Leave it out, or set "
            "`use_vllm: true` (`grpo`)."
        )


def read_settings(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields that a YAML file and a command line set, with their values as written."""
    given = list(arguments)
    if not given:
        raise ValueError(f"Give the settings: sae-posttrain {command} --config FILE.yaml (see --help).")
    settings: dict[str, Any] = {}
    fields = fields_of(command)
    if "--config" in given:
        place = given.index("--config")
        if place + 1 == len(given):
            raise ValueError("`--config` needs the name of a YAML file.")
        path = Path(given[place + 1])
        del given[place : place + 2]
        settings = read_yaml(path)
        settings.pop("env", None)
        _require_known(settings, fields, f"{path}: ")
    flags = _flags(given)
    _require_known(flags, fields, "", prefix="--")
    return settings | flags


def command_of(path: Path) -> str:
    """`"grpo"` if a YAML file holds fields that only `grpo` has, otherwise `"sft"`."""
    of_sft, of_grpo = fields_of("sft") or {}, fields_of("grpo") or {}
    return "grpo" if any(name in of_grpo and name not in of_sft for name in read_yaml(path)) else "sft"


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (`--config`).")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or error}).") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings: write one `name: value` a line.")
    return {str(name): value for name, value in settings.items()}


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    name = None
    for each in arguments:
        if each.startswith("--"):
            name, equals, value = each[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value if equals else True
        elif name is not None:
            before = flags[name]
            flags[name] = each if before is True else [*(before if isinstance(before, list) else [before]), each]
    return flags


def _require_known(
    settings: Mapping[str, Any], fields: Mapping[str, Field] | None, where: str, prefix: str = ""
) -> None:
    if fields is None:
        return
    for name in settings:
        if name in fields or (prefix and name.removeprefix("no_") in fields):
            continue
        near = get_close_matches(name, fields, n=3)
        said = f"; did you mean {', '.join(prefix + each for each in near)}?" if near else "."
        raise ValueError(
            f"{where}there is no field {prefix}{name}{said} --help lists the fields, --help-all TRL's too."
        )


def _check_of(command: str, settings: Mapping[str, Any]) -> Check:
    if command == "sft":
        column, text = (settings.get(*each) for each in (("group_column", "lang"), ("dataset_text_field", "text")))
        return TrainingRows(column, text, None)
    rewards = settings.get("reward_funcs") or ()
    return PromptRows(*rows_of_rewards([rewards] if isinstance(rewards, str) else rewards))


def _check_rows(name: str, check: Check) -> None:
    where = None
    for where, row in located(read_rows(name), name):
        check(row, where)
    if where is None:
        raise ValueError(f"{name}: the dataset holds no row.")
