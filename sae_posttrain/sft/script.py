"""`sae-posttrain sft`: SASFT from a YAML file, for one process or under `accelerate launch`."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from ..model_loading import tokenizer_of
from ..model_source import require_model
from ..penalty.groups import GroupTable
from ..penalty.refusals import load_features
from ..training.gate import require_training_rows
from ..training.script import (
    load_data,
    loading_arguments,
    parse_settings,
    require_template,
    take_split,
    train_and_save,
)
from .config import SASFTConfig
from .trainer import SASFTTrainer

ARGUMENTS: Any = (ScriptArguments, SASFTConfig, ModelConfig, DatasetMixtureConfig)
"""What a YAML file may hold: the fields of these four dataclasses."""


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Train, evaluate if there is an evaluation split, save, and push to the Hub if asked.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line: `--config FILE.yaml` and any field of [`ARGUMENTS`]; `sys.argv` by default.

    Raises:
        ValueError: If a setting or a row of the data does not fit.
        FileNotFoundError: If the data, the model or the features are not there.
    """
    run(*parse_settings(ARGUMENTS, "sae-posttrain sft", arguments))


def run(
    script_args: ScriptArguments,
    training_args: SASFTConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> SASFTTrainer:
    """Train with the parsed settings and return the trainer."""
    trainer = make_trainer(script_args, training_args, model_args, dataset_args)
    train_and_save(trainer, script_args)
    return trainer


def make_trainer(
    script_args: ScriptArguments,
    training_args: SASFTConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> SASFTTrainer:
    """The trainer of the parsed settings: all rows of the data are checked before the model is loaded."""
    check = partial(
        require_training_rows,
        group_column=training_args.group_column,
        text_field=training_args.dataset_text_field,
        check_group=_check_of_groups(training_args),
    )
    dataset = load_data(script_args, dataset_args, check)
    train_dataset = take_split(dataset, script_args, "dataset_train_split")
    with_eval = training_args.eval_strategy != "no"
    eval_dataset = take_split(dataset, script_args, "dataset_test_split") if with_eval else None
    name: Any = model_args.model_name_or_path
    if not name:
        raise ValueError("Name the model: `model_name_or_path` (a folder, a GGUF file or a Hub id).")
    require_model(name, model_args.model_revision)
    options = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    tokenizer = tokenizer_of(name, **options)
    require_template(tokenizer, training_args, train_dataset, ("messages", "prompt", "completion"))
    training_args.model_init_kwargs = loading_arguments(training_args, model_args)
    return SASFTTrainer(
        name,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )


def _check_of_groups(training_args: SASFTConfig) -> Callable[[str], Any]:
    """Raises a `ValueError` at a group without statistics. The feature set is read when a row has a group."""

    @cache
    def table() -> GroupTable | None:
        features = load_features(training_args, None)
        if features is None:
            return None
        targets = training_args.target_group or features.target_groups
        return GroupTable.for_features(features, targets, training_args.unknown_group)

    def check(group: str) -> None:
        groups = table()
        if groups is not None:
            groups.number(group)

    return check
