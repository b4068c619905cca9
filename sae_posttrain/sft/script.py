"""`sae-posttrain sft`: SASFT from a YAML file, for one process or under `accelerate launch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from .config import SASFTConfig
from .rows import require_training_rows
from .trainer import SASFTTrainer

ARGUMENTS: Any = (ScriptArguments, SASFTConfig, ModelConfig, DatasetMixtureConfig)
"""What a YAML file may hold: the fields of these four dataclasses."""

_FILE_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Train, evaluate if there is an evaluation split, save, and push to the Hub if asked.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line: `--config FILE.yaml` and any field of [`ARGUMENTS`]; `sys.argv` by default.

    Raises:
        ValueError: If a setting does not fit.
        FileNotFoundError: If `dataset_name` names a local file that does not exist.
    """
    parser = TrlParser(ARGUMENTS, prog="sae-posttrain sft")
    run(*parser.parse_args_and_config(args=arguments))


def run(
    script_args: ScriptArguments,
    training_args: SASFTConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> SASFTTrainer:
    """Train with the parsed settings and return the trainer."""
    dataset = load_data(script_args, dataset_args)
    train_dataset = take_split(dataset, script_args, "dataset_train_split")
    require_training_rows(train_dataset, training_args.group_column)
    training_args.model_init_kwargs = loading_arguments(training_args, model_args)
    with_eval = training_args.eval_strategy != "no"
    trainer = SASFTTrainer(
        model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=take_split(dataset, script_args, "dataset_test_split") if with_eval else None,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    train_and_save(trainer, script_args)
    return trainer


def loading_arguments(training_args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`: those of the model's settings, and over them `model_init_kwargs`."""
    given = training_args.model_init_kwargs
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given if isinstance(given, dict) else {}),  # TRL has parsed a JSON text by now
    }


def train_and_save(trainer: Any, script_args: ScriptArguments) -> None:
    """
    Train, save, and push to the Hub if asked.

    With `resume_from_checkpoint: true` training goes on from the last complete checkpoint in `output_dir`, or from the
    beginning if none was written yet; with a path, from that one.
    """
    args = trainer.args
    resume = args.resume_from_checkpoint
    # The field is a text, so the command line's `true` arrives as one.
    resume = {"true": True, "false": False}.get(resume.lower(), resume) if isinstance(resume, str) else resume
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(args.output_dir)
    trainer.save_state()  # the log, which `sae-posttrain report` draws
    dataset_name = _hub_dataset(script_args)
    trainer.create_model_card(model_name=Path(args.output_dir).name, dataset_name=dataset_name)
    trainer.accelerator.print(f"Model saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)


def load_data(script_args: ScriptArguments, dataset_args: DatasetMixtureConfig) -> DatasetDict:
    """
    The dataset of a recipe: a mixture, a local JSONL file, or a Hub id (or local folder) as `datasets` loads it.

    Raises:
        FileNotFoundError: If `dataset_name` names a local file that does not exist.
        ValueError: If no dataset is named.
    """
    name = script_args.dataset_name
    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif not name:
        raise ValueError("Name the training data: `dataset_name` (a JSONL file or a Hub id) or `datasets`.")
    elif name.endswith(_FILE_ENDINGS):
        if not Path(name).is_file():
            raise FileNotFoundError(f"There is no file {name} (`dataset_name`).")
        dataset = load_dataset("json", data_files={script_args.dataset_train_split: name})
    else:
        dataset = load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
    return dataset


def _hub_dataset(script_args: ScriptArguments) -> str | None:
    """Name for the model's card, which links it: no file or folder of this machine."""
    name = script_args.dataset_name
    return None if not name or name.endswith(_FILE_ENDINGS) or Path(name).exists() else name


def take_split(dataset: Any, script_args: ScriptArguments, field: str) -> Dataset | IterableDataset:
    """The split that `script_args` names in `field`; a `ValueError` names those there are."""
    name = getattr(script_args, field)
    if name not in dataset:
        raise ValueError(f"The dataset has no split {name!r}; it has {', '.join(dataset)}. Set `{field}`.")
    return dataset[name]
