"""SASFT on TRL's `SFTTrainer`: one added loss term."""

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from ..features.feature_set import FeatureSet
from ..penalty.feature_penalty import FeaturePenalty
from ..penalty.groups import GROUP_IDS, GroupCollator, GroupTable, script_detector
from ..penalty.mixin import FeaturePenaltyMixin
from .config import SASFTConfig

logger = logging.getLogger(__name__)

DEFAULT_GROUP_COLUMN = "lang"
_ROWS_READ_FROM_A_STREAM = 1000


class SASFTTrainer(FeaturePenaltyMixin, SFTTrainer):
    """
    [`~trl.SFTTrainer`] plus a penalty on SAE features (SASFT, https://huggingface.co/papers/2507.14894).

    The only change to the loss is one added term: on the response tokens of every group but the target, the height of
    the features' pre-activations above what is normal for that group. `SFTConfig` in place of [`SASFTConfig`] trains
    plainly, with a warning.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As in [`~trl.SFTTrainer`].
        args ([`SASFTConfig`], *optional*):
            Settings.
        feature_set ([`FeatureSet`], *optional*):
            The features, in place of `args.features`.
        **kwargs:
            Everything else [`~trl.SFTTrainer`] takes.

    Raises:
        ValueError: If there are no features, they belong to another model, a group in the data has no statistics, no
            token would be penalised, or a setting would put the penalty on the user's words.
    """

    _tag_names = ["trl", "sft", "sae"]
    _name = "SASFT"
    _paper = {
        "title": "SASFT: Sparse Autoencoder-guided Supervised Finetuning to Mitigate Unexpected Code-Switching in "
        "LLMs",
        "id": "2507.14894",
    }

    def __init__(
        self,
        model: Any,
        args: SASFTConfig | SFTConfig | TrainingArguments | None = None,
        *,
        feature_set: FeatureSet | None = None,
        **kwargs: Any,
    ):
        if args is None and feature_set is not None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = SASFTConfig(f"{str(name).split('/')[-1] or 'model'}-SASFT")
        self._groups: GroupTable | None = None
        penalty = None
        if isinstance(args, SASFTConfig):
            feature_set = _load_features(args, feature_set)
            if feature_set is not None:
                _refuse_unsupported(args)
                if isinstance(model, nn.Module):  # before any work; a name is checked once it is loaded
                    feature_set.check_model(model, allow_base_model=args.allow_base_model)
                targets = args.target_group or feature_set.target_groups
                self._groups = GroupTable.for_features(feature_set, targets, args.unknown_group)
                penalty = FeaturePenalty(
                    feature_set,
                    self._groups,
                    penalty=args.penalty,
                    unit=args.penalty_unit,
                    margin=args.margin,
                    hold=args.hold or "down",
                )
        elif feature_set is not None:
            raise ValueError(
                f"A `feature_set` was passed with a plain `{type(args).__name__}`, which has no penalty. "
                "Use `SASFTConfig`."
            )
        else:
            logger.warning(
                "SASFTTrainer got a plain `%s`: it trains like `SFTTrainer`, without a feature penalty. "
                "Use `SASFTConfig(features=…)` to hold features down.",
                type(args).__name__ if args is not None else "SFTConfig",
            )

        super().__init__(model, args, **kwargs)

        if penalty is not None:
            assert feature_set is not None and isinstance(args, SASFTConfig)
            feature_set.check_model(self.model, allow_base_model=args.allow_base_model)
            self._refuse_sharded_sequences()
            if args.penalty_weight > 0:
                self._require_penalised_tokens(self.train_dataset)
            # Packing and padding-free refuse a custom collator, so TRL's own is wrapped after it is built.
            self.data_collator = GroupCollator(self.data_collator)
            self.start_feature_penalty(penalty, float(args.penalty_weight), args.penalty_positions)

    # Data: a number for the group of each token, beside `input_ids` and `labels`

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if self._groups is None:
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if self._is_vision_dataset:
            raise ValueError("SASFT penalises text; vision datasets are not supported yet.")
        first = next(iter(dataset))
        self._refuse_penalty_on_prompts(first, args)
        column = self._find_group_column(first, args, dataset_name)

        # TRL packs every column of a dataset, all of which must then be lists of one length. So packing waits until
        # the column of groups stands there, and is then done as TRL does it, with the same seeds, in the same order.
        if packing:
            unpacked = copy.copy(args)
            unpacked.max_length, unpacked.shuffle_dataset = None, False
            if args.max_length is None:
                raise ValueError("When packing is enabled, `max_length` can't be `None`.")
        else:
            unpacked = args
        dataset = super()._prepare_dataset(dataset, processing_class, unpacked, False, formatting_func, dataset_name)
        map_kwargs: dict[str, Any] = {}
        if isinstance(dataset, Dataset):
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Adding groups to {dataset_name} dataset"}
        dataset = dataset.map(
            _add_group_ids,
            fn_kwargs={
                "groups": self._groups,
                "column": column,
                "processing_class": None if column else processing_class,
            },
            **map_kwargs,
        )
        if packing:
            dataset = dataset.select_columns(["input_ids", "labels", GROUP_IDS])
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            if map_kwargs:
                map_kwargs["desc"] = f"Packing {dataset_name} dataset"
            dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, map_kwargs)
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
        if column is None and isinstance(dataset, Dataset):
            self._log_groups(dataset, dataset_name)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: Any
        if self._groups is not None and GROUP_IDS not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, GROUP_IDS]

    def _find_group_column(self, first: dict[str, Any], args: SFTConfig, dataset_name: str) -> str | None:
        assert self._groups is not None and isinstance(args, SASFTConfig)
        if args.group_column in first:
            return args.group_column
        if args.group_column != DEFAULT_GROUP_COLUMN:
            raise ValueError(
                f"The {dataset_name} dataset has no column {args.group_column!r} (`group_column`). "
                f"It has {', '.join(sorted(first))}."
            )
        script_detector(self._groups.names)  # refuses groups that scripts cannot tell apart
        logger.warning(
            "The %s dataset has no column %r: the group of each example is told from the script of its answer.",
            dataset_name,
            args.group_column,
        )
        return None

    def _log_groups(self, dataset: Dataset, dataset_name: str) -> None:
        assert self._groups is not None
        names = [*self._groups.names, "other"]
        counts = Counter(names[number] for ids in dataset[GROUP_IDS] for number in set(ids))
        logger.warning(
            "Groups of the %s dataset, told from the script: %s.", dataset_name, dict(sorted(counts.items()))
        )

    def _refuse_penalty_on_prompts(self, first: dict[str, Any], args: SFTConfig) -> None:
        assert isinstance(args, SASFTConfig)
        if args.penalty_weight == 0 or "labels" in first:
            return
        messages = first.get("messages") or first.get("conversations")
        if messages and not args.assistant_only_loss and any(_role(m) != "assistant" for m in messages):
            raise ValueError(
                "With `messages` data TRL trains on the user's turns too, and the penalty would fall on them. "
                "Set `assistant_only_loss=True`."
            )
        if "prompt" in first and "completion" in first and not self.completion_only_loss:
            raise ValueError(
                "With `completion_only_loss=False` the penalty would fall on the prompts. Leave it unset, or set it "
                "to `True`."
            )

    def _require_penalised_tokens(self, dataset: Dataset | IterableDataset) -> None:
        assert self._groups is not None
        penalised = set(self._groups.penalised_ids)
        streamed = isinstance(dataset, IterableDataset)
        for row, example in enumerate(dataset):
            pairs = zip(example[GROUP_IDS][1:], example["labels"][1:])
            if any(number in penalised and label != -100 for number, label in pairs):
                return
            if streamed and row + 1 == _ROWS_READ_FROM_A_STREAM:
                logger.warning("None of the first %d examples has a token to penalise.", row + 1)
                return
        raise ValueError(
            "No token of the training data would be penalised: every answer belongs to "
            f"{', '.join(self._groups.targets)} or has no token in the loss. Add answers of other groups, or change "
            "`target_group`."
        )

    def _refuse_sharded_sequences(self) -> None:
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "SASFT does not support context or sequence parallelism: the groups of the tokens would not be "
                "sharded with them. Set `cp_size=1` and `sp_size=1`."
            )


def _load_features(args: SASFTConfig, feature_set: FeatureSet | None) -> FeatureSet | None:
    if feature_set is None and args.features is not None:
        return FeatureSet.from_pretrained(args.features)
    if feature_set is None and args.penalty_weight > 0:
        raise ValueError(
            f"`penalty_weight` is {args.penalty_weight}, but there are no features to penalise. Set `features` to a "
            "feature set (`sae-posttrain find-features` writes one), or `penalty_weight=0` for plain SFT."
        )
    return feature_set


def _refuse_unsupported(args: SASFTConfig) -> None:
    if isinstance(args.dataset_kwargs, dict) and args.dataset_kwargs.get("skip_prepare_dataset"):
        raise ValueError(
            "`dataset_kwargs={'skip_prepare_dataset': True}` leaves no place to add the group of each token. "
            "Drop it: a dataset that is tokenized already (`input_ids`, `labels` and the group column) is taken as is."
        )


def _add_group_ids(
    example: dict[str, Any], groups: GroupTable, column: str | None, processing_class: Any
) -> dict[str, list[int]]:
    """One number per token, since packing puts several examples into a row."""
    if column is not None:
        number = groups.number(example[column])
    else:
        answer = [token for token, label in zip(example["input_ids"], example["labels"]) if label != -100]
        number = groups.number(
            script_detector(groups.names)(processing_class.decode(answer, skip_special_tokens=True))
        )
    return {GROUP_IDS: [number] * len(example["input_ids"])}


def _role(message: dict[str, str]) -> str | None:
    return message.get("role") or {"gpt": "assistant"}.get(message.get("from", ""))
