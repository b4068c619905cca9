"""ms-swift's own trainer with the penalty in front. Everything that ms-swift adds still works."""

import copy
from dataclasses import dataclass
from typing import Any

from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from ...checkpoints import CompleteCheckpoints
from ...penalty.arguments import FeaturePenaltyArguments
from ...penalty.mixin import FeaturePenaltyMixin
from .plugin import SETTINGS

CHANNEL = "channel"
"""The column of ms-swift that reaches the trainer."""


@dataclass
class SwiftSASFTArguments(FeaturePenaltyArguments, Seq2SeqTrainingArguments):
    """ms-swift's arguments, and the settings that `hold_features` was called with."""

    def __post_init__(self):
        for name, value in SETTINGS.items():
            setattr(self, name, value)
        super().__post_init__()


class SwiftSASFTTrainer(FeaturePenaltyMixin, CompleteCheckpoints, Seq2SeqTrainer):  # type: ignore[misc]
    """ms-swift's trainer plus the penalty of [`SASFTTrainer`]."""

    def _refuse_what_cannot_work(self, settings: FeaturePenaltyArguments) -> None:
        super()._refuse_what_cannot_work(settings)
        if self.template.padding_free:
            raise ValueError(
                "With `--packing` and `--padding_free` several examples share a row, and their groups are lost. Set "
                "both to false; `sae-posttrain sft` packs."
            )
        if self.template.sequence_parallel_size > 1:
            raise ValueError(
                "With sequence parallelism the groups of the tokens would not be divided with them. Set "
                "`--sequence_parallel_size 1`."
            )
        if settings.penalised_tokens is not None and self.args.use_logits_to_keep is not False:
            raise ValueError(
                "ms-swift computes logits for the answers alone, and `penalised_tokens` reads them along the whole "
                "row. Set `--use_logits_to_keep false`."
            )
        if self.args.enable_channel_loss:
            raise ValueError(
                "The column `channel` tells the groups here, and the trainer does not see it. Set "
                "`--enable_channel_loss false`."
            )

    def _prepare_groups(self, settings: FeaturePenaltyArguments) -> None:
        first = next(iter(self.train_dataset))
        if CHANNEL in first:
            settings = copy.copy(settings)
            settings.group_column = CHANNEL
            raw: Any = getattr(self.train_dataset, "dataset", None)  # rows are tokenized as they are read
            if self._groups is not None and CHANNEL in (getattr(raw, "column_names", None) or ()):
                for name in dict.fromkeys(raw[CHANNEL]):
                    self._groups.number(name)
        super()._prepare_groups(settings)
