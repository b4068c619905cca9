"""What `sae-posttrain sft` and `grpo` share: reading settings, loading data, training and saving."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from ..measure.answers.rows import is_data_file
from ..model_loading import tokenizer_of
from ..model_source import require_model
from .data import CheckRows, checked, load_file, require_data_file

_NO_BF16 = "doesn't support bf16"


class SettingsParser(TrlParser):
    """[`~trl.TrlParser`] that raises a `ValueError` of one line instead of printing a usage text of a thousand."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_settings(kinds: Sequence[Any], prog: str, arguments: Sequence[str] | None) -> tuple[Any, ...]:
    """The settings of a YAML file and a command line."""
    try:
        return SettingsParser(kinds, prog=prog).parse_args_and_config(args=arguments)
    except ValueError as error:
        if _NO_BF16 in str(error):
            raise ValueError(
                "The settings ask for bf16 on a GPU, and this machine has none. To train on the CPU add `--use_cpu "
                "true` (`use_cpu: true` in the file), and `--bf16 false` for float32 throughout."
            ) from error
        raise


def load_data(
    script_args: ScriptArguments, dataset_args: DatasetMixtureConfig, check: CheckRows | None = None
) -> DatasetDict:
    """
    The dataset of a recipe: a mixture, a local JSON, JSONL, CSV or Parquet file, or a Hub id (or local folder) as
    `datasets` loads it. Messages of other forms are converted to TRL's. `check` is called with the rows of each split
    that is used.
    """
    name = script_args.dataset_name
    train = script_args.dataset_train_split
    if dataset_args.datasets:
        dataset, source = get_dataset(dataset_args), "the mixture"
    elif not name:
        raise ValueError("Name the training data: `dataset_name` (a data file or a Hub id) or `datasets`.")
    elif is_data_file(name) or Path(name).is_file():
        return load_file(name, train, check, streaming=script_args.dataset_streaming)
    else:
        require_data_file(name)
        source = name
        try:
            dataset = load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"There is no file or folder {name} (`dataset_name`), and the Hub has no dataset of that name or "
                f"cannot be reached ({_first_line(error)})."
            ) from error
        except DatasetsError as error:
            raise ValueError(f"{name} (`dataset_name`) cannot be read as a dataset: {_first_line(error)}") from error
    for split in dict.fromkeys([train, script_args.dataset_test_split]):
        if split in dataset:
            called = source if split == train else f"{source} (split {split})"
            dataset[split] = checked(dataset[split], called, check)
    return dataset


def take_split(dataset: Any, script_args: ScriptArguments, field: str) -> Dataset | IterableDataset:
    """The split that `script_args` names in `field`. If there is none, a `ValueError` names the splits there are."""
    name = getattr(script_args, field)
    if name not in dataset:
        raise ValueError(f"The dataset has no split {name!r}; it has {', '.join(dataset)}. Set `{field}`.")
    return dataset[name]


def trainer_arguments(
    script_args: ScriptArguments,
    training_args: Any,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
    check: CheckRows,
    columns: Sequence[str],
) -> dict[str, Any]:
    """
    What both commands pass to their trainer beside its own settings. All rows are checked before the model's folder,
    and the chat template before the model is loaded. `columns` are those that may hold messages.
    """
    dataset = load_data(script_args, dataset_args, check)
    train_dataset = take_split(dataset, script_args, "dataset_train_split")
    with_eval = training_args.eval_strategy != "no"
    eval_dataset = take_split(dataset, script_args, "dataset_test_split") if with_eval else None
    name = model_args.model_name_or_path
    if not name:
        raise ValueError("Name the model: `model_name_or_path` (a folder, a GGUF file or a Hub id).")
    require_model(name, model_args.model_revision)
    options: Any = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    require_template(tokenizer_of(name, **options), training_args, train_dataset, columns)
    training_args.model_init_kwargs = loading_arguments(training_args, model_args)
    return {
        "model": name,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "peft_config": get_peft_config(model_args),
        "quantization_config": get_quantization_config(model_args),
    }


def loading_arguments(training_args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`, from the settings of the model; `model_init_kwargs` overrides them."""
    given = training_args.model_init_kwargs
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given if isinstance(given, dict) else {}),  # TRL has parsed a JSON text by now
    }


def require_template(tokenizer: Any, training_args: Any, dataset: Any, columns: Sequence[str]) -> None:
    """Raise a `ValueError` if rows hold messages and the tokenizer has no template to render them."""
    first = next(iter(dataset))
    held = [name for name in columns if isinstance(first.get(name), list)]
    if not held or getattr(tokenizer, "chat_template", None) or getattr(training_args, "chat_template_path", None):
        return
    way = "Write the rows as texts, or save a tokenizer with a `chat_template` beside the model."
    if hasattr(training_args, "chat_template_path"):
        way = (
            "Name one with `chat_template_path` (a .jinja file, or a model whose template fits), or write the rows as "
            "texts."
        )
    raise ValueError(
        f"The rows hold messages (`{held[0]}`), and the tokenizer of the model has no chat template to render them. "
        f"{way}"
    )


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


def _hub_dataset(script_args: ScriptArguments) -> str | None:
    """Name of the dataset for the model card, which links it; `None` for a file or folder of this machine."""
    name = script_args.dataset_name
    return None if not name or is_data_file(name) or Path(name).exists() else name


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
