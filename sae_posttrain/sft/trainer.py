"""SASFT on TRL's `SFTTrainer`: one added loss term."""

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from ..checkpoints import CompleteCheckpoints
from ..conversations import with_messages
from ..features.set.feature_set import FeatureSet
from ..measure.answers.end_of_turn import why_never_ending
from ..model_card import FeatureCard
from ..penalty.arguments import OF_FEATURES, OF_TOKENS, FeaturePenaltyArguments
from ..penalty.groups import (
    GROUP_IDS,
    GroupCollator,
    add_group_ids,
    find_group_column,
    require_penalised_tokens,
)
from ..penalty.mixin import FeaturePenaltyMixin
from ..training.dropped import count_groups, say_dropped
from ..training.progress import show_first_figures
from .config import SASFTConfig

logger = logging.getLogger(__name__)


class SASFTTrainer(FeaturePenaltyMixin, CompleteCheckpoints, FeatureCard, SFTTrainer):  # type: ignore[misc]
    """
    [`~trl.SFTTrainer`] plus a penalty on SAE features (SASFT, https://huggingface.co/papers/2507.14894), on the
    probability of a set of tokens ("SFT+Penalty" there, the baseline without an SAE), or on both.

    The only change to the loss is one added term for each penalty. The penalty on features is the height of their
    pre-activations above what is normal for a group, on the response tokens of every group except the target. The
    penalty on tokens is the probability of `penalised_tokens` where these response tokens are predicted. With
    `SFTConfig` in place of [`SASFTConfig`] the trainer trains plainly, with a warning.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            The model, as in [`~trl.SFTTrainer`].
        args ([`SASFTConfig`], *optional*):
            Settings.
        feature_set ([`FeatureSet`], *optional*):
            The features, in place of `args.features`.
        **kwargs:
            Other arguments of [`~trl.SFTTrainer`], and `terms` of [`FeaturePenaltyMixin`]: penalties of your own.

    Raises:
        ValueError: If there are neither features nor penalised tokens, the features belong to another model, a group
            in the data has no statistics, no token would be penalised, or a setting would put the penalty on the
            user's words.
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
            args = SASFTConfig(f"{re.split('[/:]', str(name))[-1] or 'model'}-SASFT")
        try:
            super().__init__(model, args, feature_set=feature_set, **kwargs)
        except (ValueError, RuntimeError) as error:
            if not getattr(args, "assistant_only_loss", False) or "{% generation %}" not in str(error):
                raise
            raise ValueError(
                "`assistant_only_loss=True` needs a chat template that marks the assistant's words with "
                "`{% generation %}`, and this tokenizer's has no such marks. Leave it out, and give the data as "
                "columns `prompt` and `completion` (lists of messages, the completion being the assistant's turn): "
                f"then only the completion is in the loss. TRL says: {error}"
            ) from error
        show_first_figures(self, self.penalty_weight or None)
        self._say_what_never_ends()

    def _say_what_never_ends(self) -> None:
        if self.train_dataset is None or self._is_vision_dataset:
            return
        template = self.args.chat_template_path
        message = why_never_ending(
            self.train_dataset,
            getattr(self.processing_class, "tokenizer", self.processing_class),
            getattr(self.model, "generation_config", None),
            cloned_template=template is not None and not template.endswith((".jinja", ".j2")),
        )
        if message is not None:
            logger.warning(message)

    def _build_penalty(self, settings: FeaturePenaltyArguments, features: FeatureSet | None) -> None:
        dataset_kwargs = getattr(settings, "dataset_kwargs", None)
        if isinstance(dataset_kwargs, dict) and dataset_kwargs.get("skip_prepare_dataset"):
            raise ValueError(
                "`dataset_kwargs={'skip_prepare_dataset': True}` leaves no place to add the group of each token. "
                "Drop it: a dataset that is tokenized already (`input_ids`, `labels` and the group column) is taken "
                "as is."
            )
        if settings.penalty_rows != "chosen":
            raise ValueError(
                f"`penalty_rows={settings.penalty_rows!r}` penalises rejected answers too, and the data of SFT holds "
                "none. Leave it out."
            )
        super()._build_penalty(settings, features)
        self._kept_column = GROUP_IDS
        self.feature_set = features
        if features is None:  # the model card must not name features
            on_tokens = settings.penalised_tokens is not None
            penalised = "a penalty on the probability of tokens" if on_tokens else "a penalty of its own"
            self._name, self._paper = f"SFT with {penalised}", {}
            self._tag_names = ["trl", "sft"]

    def _moved_settings(self) -> dict[str, Any]:
        return {"penalty_weight in the end": self.penalty_weight} if self.adaptive_weight is not None else {}

    def _unused_settings(self) -> Collection[str]:
        return (OF_FEATURES if self.feature_penalty is None else ()) + (
            OF_TOKENS if self.token_penalty is None else ()
        )

    def _num_penalised_tokens(self) -> int:
        return len(self.token_penalty.ids) if self.token_penalty is not None else 0

    # Data: a number for the group of each token, beside `input_ids` and `labels`

    def _prepare_groups(self, settings: FeaturePenaltyArguments) -> None:
        _refuse_virtual_tokens(self.model, settings, documents_share_rows=self.padding_free)
        if self._charges and self.train_dataset is not None:
            assert self._groups is not None
            require_penalised_tokens(self.train_dataset, self._groups, self._charged_tokens())
        # Packing and padding-free refuse a custom collator, so TRL's own is wrapped after it is built.
        self.data_collator = GroupCollator(self.data_collator)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if formatting_func is None and not self._is_vision_dataset:  # also what `evaluate` is given later
            dataset = with_messages(dataset, f"the {dataset_name} dataset")
        if not self._holds:
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        groups = self._groups_for(args, dataset)
        if self._is_vision_dataset:
            raise ValueError("SASFT penalises text; vision datasets are not supported yet.")
        first = next(iter(dataset))
        self._refuse_penalty_on_prompts(first, args)
        column = find_group_column(first, args.group_column, groups, dataset_name)
        if column is None:
            self._log_group_share()
        elif isinstance(dataset, Dataset):
            groups.log_unknown(dict.fromkeys(dataset[column]), dataset_name)

        # TRL packs every column of a dataset, all of which must then be lists of one length. So packing waits until
        # the column of groups stands there, and is then done as TRL does it, with the same seeds, in the same order.
        if packing:
            unpacked = copy.copy(args)
            unpacked.max_length, unpacked.shuffle_dataset = None, False
            if args.max_length is None:
                raise ValueError("When packing is enabled, `max_length` can't be `None`.")
        else:
            unpacked = args
        given = dataset
        dataset = super()._prepare_dataset(dataset, processing_class, unpacked, False, formatting_func, dataset_name)
        if isinstance(dataset, Dataset) and isinstance(given, Dataset):
            _say_dropped(given, dataset, column, dataset_name, args.max_length, packing=packing)
        map_kwargs: dict[str, Any] = {}
        if isinstance(dataset, Dataset):
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Adding groups to {dataset_name} dataset"}
        dataset = dataset.map(
            add_group_ids,
            fn_kwargs={
                "groups": groups,
                "column": column,
                "decode": None if column else processing_class.decode,
            },
            **map_kwargs,
        )
        if column is None and isinstance(dataset, Dataset):
            counts = groups.count(number for ids in dataset[GROUP_IDS] for number in ids[:1])
            logger.warning("Groups of the %s dataset, told from the script: %s.", dataset_name, counts)
        if packing:
            dataset = dataset.select_columns(["input_ids", "labels", GROUP_IDS])
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            if map_kwargs:
                map_kwargs["desc"] = f"Packing {dataset_name} dataset"
            dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, map_kwargs)
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
        return dataset

    def _refuse_penalty_on_prompts(self, first: dict[str, Any], args: SFTConfig) -> None:
        assert isinstance(args, FeaturePenaltyArguments)
        if not self._charges or "labels" in first:
            return
        messages = first.get("messages") or first.get("conversations")
        if messages and not args.assistant_only_loss and any(_role(m) != "assistant" for m in messages):
            raise ValueError(
                "With `messages` data TRL trains on the user's turns too, and the penalty would fall on them. "
                "Set `assistant_only_loss=True`, or give the data as columns `prompt` and `completion`."
            )
        if "prompt" in first and "completion" in first and not self.completion_only_loss:
            raise ValueError(
                "With `completion_only_loss=False` the penalty would fall on the prompts. Leave it unset, or set it "
                "to `True`."
            )


def _say_dropped(
    given: Dataset, prepared: Dataset, column: str | None, name: str, max_length: int | None, *, packing: bool
) -> None:
    """Log what the length limit drops. Packing cuts rows later than this, so they are counted as if they were cut."""
    if max_length is None:
        return
    before = count_groups(given[column] if column else None, len(given))
    groups = prepared[column] if column else [""] * len(prepared)
    if packing:
        answered = (any(label != -100 for label in labels[:max_length]) for labels in prepared["labels"])
        groups = [group for group, held in zip(groups, answered) if held]
    say_dropped(before, Counter(map(str, groups)), name, max_length)


def _refuse_virtual_tokens(model: Any, settings: Any, *, documents_share_rows: bool) -> None:
    """Refuse settings that PEFT's prompt learning cannot be combined with, and that TRL allows."""
    tuning = getattr(model, "active_peft_config", None)
    if tuning is None or not tuning.is_prompt_learning:
        return
    if documents_share_rows:
        raise ValueError(
            f"With {tuning.peft_type.value.lower()} PEFT drops the positions that tell the documents of a row apart, "
            "and they would read each other. Set `padding_free=False` and `packing=False` (or "
            "`packing_strategy='wrapped'`)."
        )
    if tuning.peft_type.value == "PREFIX_TUNING" and settings.gradient_checkpointing:
        raise ValueError(
            "Prefix tuning keeps its prefix in a cache, and gradient checkpointing switches caches off. Set "
            "`gradient_checkpointing=False`."
        )


def _role(message: dict[str, str]) -> str | None:
    return message.get("role") or {"gpt": "assistant"}.get(message.get("from", ""))
