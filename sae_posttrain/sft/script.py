"""`sae-posttrain sft`: SASFT from a YAML file, for one process or under `accelerate launch`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from ..penalty.groups import GroupTable
from ..penalty.refusals import load_features
from ..training.gate import require_training_rows
from ..training.script import trainer_arguments
from ..training.watch.arguments import WatchArguments, watch_of
from .config import SASFTConfig
from .trainer import SASFTTrainer


@dataclass
class SASFTScriptArguments(WatchArguments, ScriptArguments):
    """[`~trl.ScriptArguments`] plus the watched prompts of [`WatchArguments`]."""


ARGUMENTS: Any = (SASFTScriptArguments, SASFTConfig, ModelConfig, DatasetMixtureConfig)
"""What a YAML file may hold: the fields of these four dataclasses."""


def make_trainer(
    script_args: SASFTScriptArguments,
    training_args: SASFTConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> SASFTTrainer:
    """Build the trainer of the parsed settings. All rows of the data are checked before the model is loaded."""
    check = partial(
        require_training_rows,
        group_column=training_args.group_column,
        text_field=training_args.dataset_text_field,
        check_group=_check_of_groups(training_args),
    )
    columns = ("messages", "prompt", "completion")
    watch = watch_of(script_args)
    shared = trainer_arguments(script_args, training_args, model_args, dataset_args, check, columns)
    trainer = SASFTTrainer(args=training_args, callbacks=watch, **shared)
    for each in watch:
        each.trainer = trainer
    return trainer


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
